//! How far a rank may run ahead of one to which it sends.
//!
//! A link takes whatever it is given, so without a bound all that a rank has for a slow one would wait in memory. Who sends
//! stops when so many messages, the window, have not been taken. Who receives answers each one that it takes, but for the
//! last ones, as many as the window is long: nobody waits for those answers. So whoever has sent everything has had every
//! answer, and none comes when the collective is over.

/// What a rank may send to another.
#[derive(Debug)]
pub(super) struct Credit {
    window: u64,
    gone: u64,
    taken: u64,
}

impl Credit {
    pub(super) const fn new(window: u64) -> Self {
        Self { window, gone: 0, taken: 0 }
    }

    /// For a way that keeps senders back by itself.
    pub(super) const fn unbounded() -> Self {
        Self::new(u64::MAX)
    }

    /// Whether one more message may go.
    pub(super) const fn is_left(&self) -> bool {
        self.gone - self.taken < self.window
    }

    /// One more goes.
    pub(super) const fn spend(&mut self) {
        self.gone += 1;
    }

    /// The other rank answers. Says whether there is something that it can have taken.
    pub(super) const fn answered(&mut self) -> bool {
        let is_due = self.taken < self.gone;
        self.taken += is_due as u64;
        is_due
    }
}

/// What a rank owes another from which it receives.
#[derive(Debug)]
pub(super) struct Answers {
    left: u64,
}

impl Answers {
    /// To as many messages as come in all.
    pub(super) const fn new(window: u64, messages: u64) -> Self {
        Self { left: messages.saturating_sub(window) }
    }

    pub(super) const fn none() -> Self {
        Self { left: 0 }
    }

    /// One more message has been taken. Says whether to answer it.
    pub(super) const fn took(&mut self) -> bool {
        let is_due = self.left > 0;
        self.left -= is_due as u64;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_goes_in_the_window_and_no_answer_is_left(
            window in 1_u64..6,
            messages in 0_u64..40,
            turns in prop::collection::vec(any::<bool>(), 0..100),
        ) {
            let (mut credit, mut answers) = (Credit::new(window), Answers::new(window, messages));
            let (mut on_way, mut back, mut sent, mut taken) = (0, VecDeque::new(), 0, 0);
            // In any order, and then each whenever it can.
            for sends in turns.into_iter().chain([true, false].repeat(50)) {
                if sends {
                    while back.pop_front().is_some() {
                        prop_assert!(credit.answered());
                    }
                    if sent < messages && credit.is_left() {
                        credit.spend();
                        (sent, on_way) = (sent + 1, on_way + 1);
                    }
                    prop_assert!(on_way <= window);
                } else if on_way > 0 {
                    (taken, on_way) = (taken + 1, on_way - 1);
                    if answers.took() {
                        // Whoever has sent all is gone.
                        prop_assert!(sent < messages);
                        back.push_back(());
                    }
                }
            }
            prop_assert_eq!((sent, taken, back.len()), (messages, messages, 0));
        }
    }

    #[test]
    fn nothing_is_answered_that_was_not_sent() {
        let mut credit = Credit::new(2);
        assert!(!credit.answered());
        credit.spend();
        assert!(credit.answered() && !credit.answered());
    }
}
