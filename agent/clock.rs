//! The one clock that decisions see.

use pgsquire_core::time::Time;

/// Now, on `CLOCK_BOOTTIME`: a stepped wall clock changes nothing, and a suspended host ages its facts.
pub fn now() -> Time {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    let micros =
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000;
    Time::from_micros(micros)
}
