//! Lines of one kind, so that a log stays readable when a whole node fails at once: the first few are said, and how many
//! more there were is told once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

/// Lines that are said in one window; the others are counted.
const MAX_LINES: u32 = 10;

/// How long a window is. It begins with the first line after the one before.
const WINDOW: Duration = Duration::from_secs(10);

/// Lines of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Says how many more there were.
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
    /// Lines of a kind; `log_held_back` says how many were held back, when the window is over.
    pub fn new(log_held_back: fn(u32)) -> Self {
        let window = Mutex::default();
        Self(Arc::new(Shared {
            log_held_back,
            window,
        }))
    }

    /// Whether a line may be said now. One that may not is counted.
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

    /// At the end of the window; where there is no runtime to wait in, the next line does it.
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
        /// What was told of this test's lines; its runtime has one thread.
        static TOLD: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    fn lines() -> LogLimiter {
        LogLimiter::new(|more| TOLD.with_borrow_mut(|told| told.push(more)))
    }

    fn said_of(lines: &LogLimiter, tried: u32) -> u32 {
        (0..tried).map(|_| u32::from(lines.may_log())).sum()
    }

    fn told() -> Vec<u32> {
        TOLD.with_borrow(Clone::clone)
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_hundred_lines_ten_are_said_and_one_tells_of_the_others() {
        let lines = lines();
        assert_eq!(said_of(&lines, 100), 10);
        assert_eq!(told(), [0; 0], "the window is not over");
        tokio::time::sleep(WINDOW).await;
        tokio::task::yield_now().await;
        assert_eq!(told(), [90]);
        assert_eq!(said_of(&lines, 3), 3, "another window");
        tokio::time::sleep(2 * WINDOW).await;
        assert_eq!(told(), [90], "nothing was held back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_now_and_then_are_all_said() {
        let lines = lines();
        for _ in 0..30 {
            assert!(lines.may_log());
            tokio::time::sleep(WINDOW / 10).await;
        }
        assert_eq!(told(), [0; 0]);
    }

    #[test]
    fn no_line_is_lost_where_there_is_no_runtime() {
        let lines = lines();
        assert_eq!(said_of(&lines, 12), 10);
        lines.window().began = Instant::now().checked_sub(WINDOW);
        assert!(lines.may_log());
        assert_eq!(told(), [2]);
    }
}
