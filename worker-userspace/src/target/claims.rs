//! Which owner has which patterns, so that a connection never has two owners of equal right.

use std::collections::HashMap;

use super::{HostPattern, Pattern};

/// Patterns and their owners, as they are claimed one after the other.
#[derive(Debug)]
pub struct Claims<O>(HashMap<HostPattern, Vec<(Pattern, O)>>);

impl<O> Default for Claims<O> {
    fn default() -> Self {
        Claims(HashMap::new())
    }
}

impl<O> Claims<O> {
    /// Notes that `owner` has `pattern`. Gives the first claim that rivals it and that is not `same`, as owner.
    pub fn claim(
        &mut self,
        pattern: Pattern,
        owner: O,
        same: impl Fn(&O, &O) -> bool,
    ) -> Option<&(Pattern, O)> {
        let claims = self.0.entry(pattern.host.clone()).or_default();
        let rival = claims.iter().position(|(other, holder)| other.rivals(&pattern) && !same(holder, &owner));
        claims.push((pattern, owner));
        rival.map(|at| &claims[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Host, PatternMap, Target};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn rivals_have_equal_right() {
        for (a, b, rivals) in [
            ("vc.example", "vc.example", true),
            ("vc.example", "VC.example.", true),
            ("vc.example:443", "vc.example:443", true),
            ("vc.example:1-100", "vc.example:100,200", true),
            ("vc.example", "vc.example:443", false),
            ("vc.example:443", "vc.example:902", false),
            ("vc.example", "*.example", false),
            ("*.example", "*.example", true),
            ("*.a.example", "*.example", false),
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/9", false),
            ("10.0.0.1", "10.0.0.1/32", true),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("[2001:db8::1]:443", "[2001:db8:0::1]:1-1000", true),
        ] {
            assert_eq!(pattern(a).rivals(&pattern(b)), rivals, "{a} and {b}");
            assert_eq!(pattern(b).rivals(&pattern(a)), rivals, "{b} and {a}");
        }
    }

    proptest! {
        /// Where no claims rival, one owner is most specific for each target, in whatever order they came.
        #[test]
        fn without_rivals_every_target_has_one_owner(
            patterns in vec(("(\\*\\.)?(a\\.)?b(:[1-3](,[1-3])?)?", 0u8..3), 0..12), host in "(a\\.){0,2}b", port in 1u16..4,
        ) {
            let mut claims = Claims::default();
            let mut kept: Vec<(Pattern, u8)> = Vec::new();
            for (text, owner) in patterns {
                let pattern = pattern(&text);
                let mut trial = kept.clone();
                trial.push((pattern.clone(), owner));
                if claims.claim(pattern, owner, |a, b| a == b).is_none() {
                    kept = trial;
                }
            }
            let (mut ahead, mut behind) = (PatternMap::default(), PatternMap::default());
            kept.iter().for_each(|(pattern, owner)| ahead.insert(pattern.clone(), *owner));
            kept.iter().rev().for_each(|(pattern, owner)| behind.insert(pattern.clone(), *owner));
            let target = Target { host: Host::Name(host.parse().unwrap()), port };
            prop_assert_eq!(ahead.find(&target).map(|(_, o)| o), behind.find(&target).map(|(_, o)| o));
        }
    }
}
