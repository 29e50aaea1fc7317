//! Conditions awaited with a deadline. The only pause between two looks in the whole
//! crate is here. Each wait has a name, and one that fails reports what it saw last.

use std::{
    cell::Cell,
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// Pause between two looks. Short against what is waited for (tens of
/// milliseconds and more), long against the cost of a look.
const PAUSE: Duration = Duration::from_millis(100);

/// The shortest deadline, whatever the caller asks for: a slow machine is no failure
/// of the condition, and a condition that is true at once is not waited for.
const LEAST: Duration = Duration::from_secs(30);

/// `VEER_E2E_PATIENCE`: by how much every deadline is longer, for machines much
/// slower than any real one (an emulated one). 1 where it is no number.
pub fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let factor = env::var("VEER_E2E_PATIENCE").ok();
        factor.and_then(|f| f.parse().ok()).unwrap_or(1).max(1)
    })
}

/// Calls `look` until it returns `Ok(Some(value))` or `deadline`, and half a minute
/// at least, has passed.
///
/// `look` returns `Ok(None)` or `Err(what was seen)` while the condition does
/// not hold: an error is not fatal, since what is waited for often begins
/// with errors (a server that is not up yet).
///
/// # Errors
/// [`Error::Timeout`] with the last sight.
pub fn await_condition<T>(
    what: &str,
    deadline: Duration,
    look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T> {
    looked_until(what, deadline.max(LEAST) * patience(), look)
}

thread_local! {
    /// This thread is in a look of [`await_condition`].
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// How long one question to a peer may go without an answer: all the patience there
/// is where it is asked once. A look of [`await_condition`] asks again instead, since
/// a connection that began before the condition holds may never be answered.
pub fn attempt() -> Duration {
    let once = if LOOKING.get() { LEAST / 10 } else { LEAST };
    once * patience()
}

/// Does one look, so that [`attempt`] knows of it.
fn look_once<T>(look: impl FnOnce() -> T) -> T {
    let outer = LOOKING.replace(true);
    let sight = look();
    LOOKING.set(outer);
    sight
}

fn looked_until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T> {
    let start = Instant::now();
    let mut seen = "nothing yet".to_owned();
    loop {
        match look_once(&mut look) {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(sight) => seen = sight,
        }
        if start.elapsed() >= deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                waited: start.elapsed(),
                seen,
            });
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_gives_its_value() {
        let mut looks = 0;
        let value = await_condition("third look", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 {
                Ok(Some(looks))
            } else {
                Err(format!("look {looks}"))
            }
        });
        assert_eq!(value.expect("comes true"), 3);
    }

    #[test]
    fn an_attempt_within_a_look_is_shorter_than_the_wait() {
        let within = await_condition("a look", LEAST, || Ok(Some(attempt())));
        assert!(within.expect("the first look") * 5 < attempt());
    }

    #[test]
    fn a_condition_that_stays_false_reports_the_last_sight() {
        let error = looked_until::<()>("never", Duration::from_millis(1), || {
            Err("two of three".to_owned())
        })
        .expect_err("cannot come true");
        let text = error.to_string();
        assert!(
            text.contains("never") && text.contains("two of three"),
            "{text}"
        );
    }
}
