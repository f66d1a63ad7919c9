//! Times as people and Patroni write them.

/// Seconds since 1970 of `2026-01-31T12:00:00+02:00`, as Patroni writes times (an offset is always there).
pub fn seconds_of(text: &str) -> Option<i128> {
    let (date, time) = text.split_once(['T', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i128>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let offset_at = time.rfind(['+', '-', 'Z'])?;
    let (clock, offset) = time.split_at(offset_at);
    let seconds = |text: &str| -> Option<i128> {
        let mut parts = text.split(':').map(|part| part.split('.').next().unwrap_or("").parse::<i128>().ok());
        let hours = parts.next()??;
        Some(hours * 3600 + parts.next().flatten().unwrap_or(0) * 60 + parts.next().flatten().unwrap_or(0))
    };
    let offset = match offset.split_at(1) {
        ("Z", _) => 0,
        ("-", rest) => -seconds(rest)?,
        (_, rest) => seconds(rest)?,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of the proleptic Gregorian calendar, counted from March on.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    Some(days * 86_400 + seconds(clock)? - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_scheduled_switchovers() {
        assert_eq!(seconds_of("1970-01-01T00:00:00+00:00"), Some(0));
        assert_eq!(seconds_of("2026-11-21T07:00:00.5+01:00"), Some(1_795_240_800));
        assert_eq!(seconds_of("2024-02-29T23:59:59Z"), Some(1_709_251_199));
        assert_eq!(seconds_of("2000-03-01 00:00:00-05:30"), Some(951_888_600));
        for bad in ["", "tomorrow", "2026-13-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00"] {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }
}
