//! Shares of traffic.

use meltemi_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use meltemi_proto::envoy::r#type::v3::FractionalPercent;
use meltemi_proto::envoy::r#type::v3::fractional_percent::DenominatorType;

/// A share of requests. Source: Envoy `FractionalPercent`; runtime keys are not consulted, their
/// default is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// All requests.
    pub const ALL: Self = Self {
        numerator: 100,
        denominator: 100,
    };
    /// No request.
    pub const NONE: Self = Self {
        numerator: 0,
        denominator: 100,
    };

    /// Lowers Envoy's message; an unknown denominator is a hundred.
    pub fn from_proto(message: &FractionalPercent) -> Self {
        let denominator = match DenominatorType::try_from(message.denominator) {
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Ok(DenominatorType::Hundred) | Err(_) => 100,
        };
        Self {
            numerator: message.numerator,
            denominator,
        }
    }

    /// Lowers an optional message with its default.
    pub fn from_option(message: Option<&FractionalPercent>, default: Self) -> Self {
        message.map_or(default, Self::from_proto)
    }

    /// Lowers a fraction that a runtime key could override in Envoy.
    pub fn from_runtime(message: Option<&RuntimeFractionalPercent>, default: Self) -> Self {
        message.map_or(default, |message| {
            Self::from_option(message.default_value.as_ref(), default)
        })
    }

    /// Of 100, with the precision of a millionth.
    pub fn from_percent(percent: f64) -> Self {
        // `as` saturates and sends NaN to 0.
        Self {
            numerator: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
            denominator: 1_000_000,
        }
    }

    /// Whether a request with this random number is in the share.
    pub fn hits(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }

    /// Whether nothing is in the share.
    pub fn is_none(self) -> bool {
        self.numerator == 0
    }

    /// As a number between 0 and 1.
    pub fn ratio(self) -> f64 {
        (f64::from(self.numerator) / f64::from(self.denominator)).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_over_a_cycle() {
        let tenth = Fraction::from_percent(10.0);
        let hits = (0..1_000_000u64)
            .filter(|random| tenth.hits(*random))
            .count();
        assert_eq!(hits, 100_000);
        assert!(!Fraction::NONE.hits(0));
        assert!(Fraction::ALL.hits(99));
        assert!(Fraction::from_percent(f64::NAN).is_none());
    }
}
