//! Durations as an administrator writes them: one whole number and one unit, `500ms`, `10s`, `2m`, `1h`, `90d`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::fault::{Wrong, wrong};

/// Units and their length in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration that must lie in `range`.
pub(super) fn parse(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let no_duration =
        || wrong("not a duration", "write a whole number and a unit, as in \"500ms\", \"10s\" or \"2m\"");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(no_duration)?);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(no_duration)?;
    if number.is_empty() {
        return Err(no_duration());
    }
    // A number that no u64 holds is out of every range too.
    let duration = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).map(Duration::from_millis);
    match duration {
        Some(duration) if range.contains(&duration) => Ok(duration),
        _ => {
            let (low, high) = (show(*range.start()), show(*range.end()));
            Err(wrong(
                format!("not between {low} and {high}"),
                format!("write a duration from \"{low}\" to \"{high}\""),
            ))
        }
    }
}

/// A duration in the largest unit that leaves no rest: what [`parse`] reads back.
fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fits = |length: u64| millis.is_multiple_of(u128::from(length));
    let (unit, length) = match UNITS.iter().find(|(_, length)| millis > 0 && fits(*length)) {
        Some(unit) => *unit,
        None => ("s", 1_000),
    };
    format!("{}{unit}", millis / u128::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

    #[test]
    fn durations_mean_what_they_say() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text, &HOUR), Ok(Duration::from_millis(millis)), "{text}");
        }
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(parse("90d", &(day..=100 * day)), Ok(90 * day));
        assert_eq!(
            parse("1h", &(day..=100 * day)).map_err(|w| w.problem),
            Err("not between 1d and 100d".into())
        );
    }

    #[test]
    fn what_is_no_duration_says_so() {
        for text in ["", "10", "s", "-1s", "1.5s", "1 s", "1w", "1m30s", " 1s", "1S", "１s"] {
            assert_eq!(parse(text, &HOUR).map_err(|w| w.problem), Err("not a duration".into()), "{text:?}");
        }
        for text in ["61m", "2h", "3600001ms", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(
                parse(text, &HOUR).map_err(|w| w.problem),
                Err("not between 0s and 1h".into()),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0u64..=3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&show(duration), &HOUR), Ok(duration));
        }
    }
}
