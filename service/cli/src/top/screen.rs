//! The terminal of `top`: another screen, keys without echo, and both given back on every way out.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, poll, read};
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use crossterm::{execute, queue};
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};

/// How long the reader of keys waits before it looks whether it is still wanted.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Columns and rows of a terminal that does not tell.
const SIZE_UNKNOWN: (u16, u16) = (80, 24);

/// The terminal while `top` has it.
pub(super) struct Screen {
    /// Says that the user wants to leave, or that there are no keys any more.
    left: mpsc::Receiver<()>,
    wanted: Arc<AtomicBool>,
}

fn failed(error: io::Error) -> Failure {
    Failure::new(format!("the terminal: {error}"))
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> Result<Self> {
        enable_raw_mode().map_err(failed)?;
        let (leave, left) = mpsc::channel(1);
        let screen = Self { left, wanted: Arc::new(AtomicBool::new(true)) };
        execute!(io::stdout(), EnterAlternateScreen, Hide).map_err(failed)?;
        let wanted = Arc::clone(&screen.wanted);
        tokio::task::spawn_blocking(move || {
            wait_for_leave(&wanted);
            // Gone already: then nobody has to be told.
            let _ = leave.blocking_send(());
        });
        Ok(screen)
    }

    /// Completes when the user wants to leave.
    pub(super) async fn left(&mut self) {
        self.left.recv().await;
    }

    /// Shows lines, cut at the edges of the terminal.
    pub(super) fn draw(&mut self, lines: &[String]) -> Result<()> {
        let (width, height) = match size().map_err(failed)? {
            // A terminal that does not know its size, as some serial lines.
            (0, _) | (_, 0) => SIZE_UNKNOWN,
            known => known,
        };
        let mut out = io::stdout().lock();
        for (row, line) in (0..height).zip(lines) {
            let line: String = line.chars().take(usize::from(width)).collect();
            queue!(out, MoveTo(0, row), Clear(ClearType::CurrentLine)).map_err(failed)?;
            out.write_all(line.as_bytes()).map_err(failed)?;
        }
        let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        if rows < height {
            queue!(out, MoveTo(0, rows), Clear(ClearType::FromCursorDown)).map_err(failed)?;
        }
        out.flush().map_err(failed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
        // A terminal that is gone needs nothing back.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

/// Reads keys until one says to leave, the keyboard is gone or nobody wants them any more.
fn wait_for_leave(wanted: &AtomicBool) {
    while wanted.load(Ordering::Relaxed) {
        match poll(KEY_WAIT) {
            Ok(false) => {}
            Ok(true) => match read() {
                Ok(Event::Key(key)) if leaves(&key) => return,
                Ok(_) => {}
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
}

fn leaves(key: &KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_leave() {
        let plain = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(leaves(&plain(KeyCode::Char('q'))) && leaves(&plain(KeyCode::Esc)));
        assert!(!leaves(&plain(KeyCode::Char('c'))) && !leaves(&plain(KeyCode::Enter)));
        assert!(leaves(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }
}
