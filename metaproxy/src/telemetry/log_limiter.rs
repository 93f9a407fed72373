//! Limits log lines of one kind, so that the log stays readable when a whole node fails at once. The first few lines
//! are written, and one more line reports how many were suppressed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

/// The maximum number of lines of one kind that are written in one window. Further lines are only counted.
const MAX_LINES: u32 = 10;

/// The length of a window. A window begins with the first line after the end of the previous window.
const WINDOW: Duration = Duration::from_secs(10);

/// Limits the lines of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Logs how many lines were suppressed.
    log_held_back: fn(u32),
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    logged: u32,
    held_back: u32,
}

impl LogLimiter {
    /// Makes a limiter. After each window in which lines were suppressed, `log_held_back` is called with their
    /// number.
    pub fn new(log_held_back: fn(u32)) -> Self {
        let window = Mutex::default();
        Self(Arc::new(Shared {
            log_held_back,
            window,
        }))
    }

    /// Returns whether a line may be written now. Counts the line if it may not.
    pub fn may_log(&self) -> bool {
        let now = Instant::now();
        let mut window = self.window();
        let is_over = window
            .began
            .is_none_or(|began| now.duration_since(began) >= WINDOW);
        let late = if is_over {
            let before = std::mem::take(&mut *window);
            window.began = Some(now);
            before.held_back
        } else {
            0
        };
        let may = window.logged < MAX_LINES;
        if may {
            window.logged += 1;
        } else {
            window.held_back += 1;
            if window.held_back == 1 {
                self.log_held_back_later(
                    WINDOW.saturating_sub(window.began.map_or(WINDOW, |began| now - began)),
                );
            }
        }
        drop(window);
        if late > 0 {
            (self.0.log_held_back)(late);
        }
        may
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.0.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the number of suppressed lines at the end of the window. Without a Tokio runtime, which the wait needs,
    /// the first line after the window triggers this.
    fn log_held_back_later(&self, left: Duration) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let limiter = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(left).await;
            let more = std::mem::take(&mut limiter.window().held_back);
            if more > 0 {
                (limiter.0.log_held_back)(more);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        /// The numbers that the limiter of this test has logged. A thread-local value suffices, because the test's
        /// runtime has one thread.
        static HELD_BACK: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    fn lines() -> LogLimiter {
        LogLimiter::new(|more| HELD_BACK.with_borrow_mut(|held_back| held_back.push(more)))
    }

    fn count_logged(lines: &LogLimiter, tried: u32) -> u32 {
        (0..tried).map(|_| u32::from(lines.may_log())).sum()
    }

    fn held_back() -> Vec<u32> {
        HELD_BACK.with_borrow(Clone::clone)
    }

    #[tokio::test(start_paused = true)]
    async fn ten_of_a_hundred_lines_are_written_and_the_others_are_counted() {
        let lines = lines();
        assert_eq!(count_logged(&lines, 100), 10);
        assert_eq!(held_back(), [0; 0], "the window is not over");
        tokio::time::sleep(WINDOW).await;
        tokio::task::yield_now().await;
        assert_eq!(held_back(), [90]);
        assert_eq!(count_logged(&lines, 3), 3, "another window");
        tokio::time::sleep(2 * WINDOW).await;
        assert_eq!(held_back(), [90], "nothing was held back");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_below_the_limit_are_all_written() {
        let lines = lines();
        for _ in 0..30 {
            assert!(lines.may_log());
            tokio::time::sleep(WINDOW / 10).await;
        }
        assert_eq!(held_back(), [0; 0]);
    }

    #[test]
    fn no_line_is_lost_without_a_runtime() {
        let lines = lines();
        assert_eq!(count_logged(&lines, 12), 10);
        lines.window().began = Instant::now().checked_sub(WINDOW);
        assert!(lines.may_log());
        assert_eq!(held_back(), [2]);
    }
}
