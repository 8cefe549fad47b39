//! What a command says while it waits.

use super::complain;

/// Tells why a command waits, and again only when that is something else.
#[derive(Default)]
pub(super) struct Waiting {
    told: String,
}

impl Waiting {
    /// Tells of `why`, if there is anything to tell that was not told last; answers whether it did.
    pub(super) fn tell(&mut self, why: Option<&str>) -> bool {
        match why {
            Some(why) if *why != self.told => {
                complain(format_args!("waiting: {why}"));
                why.clone_into(&mut self.told);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_twice_in_a_row() {
        let mut waiting = Waiting::default();
        let whys = [Some("a"), Some("a"), None, Some("a"), Some("b"), Some("a")];
        let told = whys.map(|why| waiting.tell(why));
        assert_eq!(told, [true, false, false, false, true, true]);
    }
}
