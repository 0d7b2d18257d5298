//! Durations as Go writes them: `1.5s`, `1h30m`, `100ms`.

use std::fmt;
use std::ops::Deref;
use std::time::Duration as StdDuration;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::schema::{Field, Report};

/// A duration; reads every form that Go's `time.ParseDuration` does, except negative ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Duration(pub StdDuration);

impl Duration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(StdDuration::from_secs(seconds))
    }

    /// Reads `1h2m3.5s`; `None` if it is not a duration or is negative.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        if text == "0" {
            return Some(Self::default());
        }
        if text.is_empty() {
            return None;
        }
        let mut rest = text;
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let number_end = rest
                .find(|c: char| !c.is_ascii_digit() && c != '.')
                .unwrap_or(rest.len());
            let (number, tail) = rest.split_at(number_end);
            let unit_end = tail
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let unit: u128 = match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return None,
            };

            total = total.checked_add(nanoseconds(number, unit)?)?;
            rest = tail;
        }

        // Go's limit is an i64 of nanoseconds.
        u64::try_from(total)
            .ok()
            .filter(|nanos| i64::try_from(*nanos).is_ok())
            .map(|nanos| Self(StdDuration::from_nanos(nanos)))
    }
}

/// `number` times `unit`, where `number` is digits with at most one point.
fn nanoseconds(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };

    let mut nanos = whole.checked_mul(unit)?;
    let mut scale = unit;
    for digit in fraction.bytes() {
        // What is below a tenth of the unit's smallest part is lost, as in Go.
        let digit = u128::from(digit.checked_sub(b'0')?);
        nanos += digit * scale / 10;
        scale /= 10;
    }

    Some(nanos)
}

impl Deref for Duration {
    type Target = StdDuration;
    fn deref(&self) -> &StdDuration {
        &self.0
    }
}

impl From<Duration> for StdDuration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl From<StdDuration> for Duration {
    fn from(duration: StdDuration) -> Self {
        Self(duration)
    }
}

/// In seconds, as protobuf's JSON writes it: `1.500s`.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        match nanos {
            0 => write!(f, "{seconds}s"),
            n if n % 1_000_000 == 0 => write!(f, "{seconds}.{:03}s", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "{seconds}.{:06}s", n / 1_000),
            n => write!(f, "{seconds}.{n:09}s"),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Field for Duration {
    fn read(&mut self, value: &Value, report: &mut Report) {
        let Some(text) = value.as_str() else {
            return report.wrong_type("string", value);
        };
        match Self::parse(text) {
            Some(duration) => *self = duration,
            None => report.error(
                "MEL0111",
                format!(
                    "{:?} must be a valid duration greater than 1ms",
                    crate::schema::shorten(text)
                ),
                "write a number with a unit, for example 500ms, 2s, 1m30s",
            ),
        }
    }

    fn is_unset(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        let millis = |text| Duration::parse(text).map(|d| d.as_millis());
        assert_eq!(millis("7s"), Some(7_000));
        assert_eq!(millis("1.5h"), Some(5_400_000));
        assert_eq!(millis("1m30.5s"), Some(90_500));
        assert_eq!(millis(".5s"), Some(500));
        assert_eq!(millis("0"), Some(0));
        assert_eq!(millis("0s"), Some(0));

        for wrong in [
            "",
            "s",
            "7",
            "-7s",
            "1,5s",
            "1d",
            "1.2.3s",
            "99999999999999h",
            "7s ",
            " 7s",
            ".",
        ] {
            assert_eq!(Duration::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["7s", "0.500s", "0.000001s", "3600s", "0s"] {
            assert_eq!(Duration::parse(text).expect("valid").to_string(), text);
        }
    }
}
