//! What a command says while it waits.

use super::{Failure, complain};

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

/// What is told when the proxy that `what` was asked of cannot say any more how far it is: all that it is to do is
/// in the records by then.
pub(super) fn gone(what: &'static str) -> impl Fn(Failure) -> Failure {
    move |failure| match failure {
        Failure::Failed(why) => Failure::Failed(format!(
            "{what} has begun, and goes on without the proxy that was asked: on another one, or when this one is back. \
             `segue status` tells how far it is, of any proxy (--admin). {why}"
        )),
        other => other,
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
