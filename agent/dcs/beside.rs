//! What else a store holds, for who is followed and not there: is it the scope, the namespace or the group that is wrong?

/// So many names are enough for people.
pub(super) const MANY: usize = 20;

/// The folders in which a prefix may have neighbours, the nearest first: of `/service/main/0/` these are `/service/main/`,
/// `/service/` and `/`. The first that holds anything is the place. Consul's begin without a slash.
pub(super) fn folders(prefix: &str) -> impl Iterator<Item = &str> {
    let inner = prefix.trim_end_matches('/');
    let root = if inner.starts_with('/') { None } else { Some("") };
    inner.rmatch_indices('/').map(|(at, _)| &inner[..=at]).chain(root)
}

/// Whether a name may be a scope, a namespace or a group, and not what stands below one.
pub(super) fn counts(name: &str) -> bool {
    !matches!(name, "" | "members" | "optime" | "pgsquire" | "zookeeper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_comes_first() {
        assert_eq!(folders("/service/main/0/").collect::<Vec<_>>(), ["/service/main/", "/service/", "/"]);
        assert_eq!(folders("/main/").collect::<Vec<_>>(), ["/"]);
        assert_eq!(folders("service/main/").collect::<Vec<_>>(), ["service/", ""]);
        assert!(counts("main") && counts("0") && !counts("members"));
    }
}
