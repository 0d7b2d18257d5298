//! Random numbers from one seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Not for secrets.
//!
//! The whole state is one `u64`, so callers keep it wherever they like: in a `Cell`, an atomic or a
//! local variable.

/// The step from one state to the next. A caller with an atomic state adds it and calls [`mix`].
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Advances `state` by one step and returns the new state's number.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(STEP);
    mix(*state)
}

/// The number of a state. Different states give different numbers.
pub fn mix(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Scales 64 random bits to a number below `bound`, by a multiplication instead of a division.
pub fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_equal_those_of_the_published_generator() {
        // The numbers that Vigna's splitmix64.c prints for this seed.
        let mut state = 1_234_567;
        let drawn: [u64; 3] = std::array::from_fn(|_| next(&mut state));
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn below_covers_its_range() {
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, 7), 6);
    }
}
