//! What another thread may do to a running build: replace it by a newer one, ending the steps that the newer one does not want.

use super::worker::Token;
use crate::{build::graph::StepId, digest::Digest};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub struct Control(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    superseded: bool,
    running: Vec<Running>,
}

/// A step that has its seat.
#[derive(Debug)]
struct Running {
    step: StepId,
    key: Digest,
    token: Arc<Token>,
}

impl Control {
    /// The build starts no further step. Those that run go on to their end if `wanted`, and are ended otherwise. Says which are.
    pub fn supersede(&self, wanted: impl Fn(StepId, &Digest) -> bool) -> Vec<StepId> {
        let mut state = self.state();
        state.superseded = true;
        let unwanted = state.running.iter().filter(|it| !wanted(it.step, &it.key));
        unwanted
            .map(|it| {
                it.token.revoke();
                it.step
            })
            .collect()
    }

    pub fn is_superseded(&self) -> bool {
        self.state().superseded
    }

    /// The step runs from now on, until [`Control::end`].
    pub(super) fn begin(&self, step: StepId, key: Digest) -> Arc<Token> {
        let token = Arc::new(Token::default());
        let mut state = self.state();
        // Its turn came in the moment in which the build was replaced.
        if state.superseded {
            token.revoke();
        }
        state.running.push(Running { step, key, token: Arc::clone(&token) });
        token
    }

    pub(super) fn end(&self, step: StepId) {
        self.state().running.retain(|it| it.step != step);
    }

    /// A thread that panicked here left a list that is valid at every step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_wanted_any_more_is_ended() {
        let control = Control::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let (first, second) = (control.begin(StepId(1), a), control.begin(StepId(2), b));
        assert!(!control.is_superseded());
        control.end(StepId(7));
        assert_eq!(control.supersede(|_, key| *key == a), [StepId(2)]);
        assert!(control.is_superseded() && !first.is_revoked() && second.is_revoked());
        assert!(control.begin(StepId(3), a).is_revoked());
    }

    #[test]
    fn what_has_ended_is_left_alone() {
        let control = Control::default();
        let token = control.begin(StepId(1), Digest::of(b"a"));
        control.end(StepId(1));
        assert_eq!(control.supersede(|_, _| false), []);
        assert!(!token.is_revoked());
    }
}
