use super::*;

#[test]
fn the_more_ask_the_less_often_each_of_them_does() {
    let pace = |pollers, max_fact_age: u64| {
        let config = WorkerConfig {
            cluster: "main".into(),
            scope: "main".into(),
            hosts: Vec::new(),
            pollers,
            max_fact_age: Duration::from_secs(max_fact_age),
            tls: patroni::WorkerConfig::default(),
        };
        config.pace().as_millis()
    };
    assert_eq!((pace(1, 10), pace(10, 10)), (150, 150));
    assert_eq!((pace(15, 10), pace(20, 10), pace(100, 10)), (225, 300, 1_500));
    // Never so seldom that one lost answer would make what is known too old.
    assert_eq!((pace(1_000_000, 10), pace(100, 3)), (3_333, 1_000));
}
