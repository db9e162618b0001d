//! The terminal while an answer comes.

#[cfg(unix)]
pub use unix::{hush, restore};

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::Mutex;

    use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

    /// How the terminal was before it was hushed.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

    /// As long as it lives, typed letters are not shown: they would stand between those of the answer. They are there when the
    /// next line is read.
    pub struct Hushed(());

    /// Hushes the terminal on standard input, if it is one.
    pub fn hush() -> Hushed {
        if let Ok(before) = tcgetattr(io::stdin()) {
            let mut silent = before.clone();
            silent.local_flags.remove(LocalFlags::ECHO);
            if tcsetattr(io::stdin(), SetArg::TCSANOW, &silent).is_ok()
                && let Ok(mut place) = BEFORE.lock()
            {
                *place = Some(before);
            }
        }
        Hushed(())
    }

    /// Makes the terminal as it was, also where no destructor will run any more.
    pub fn restore() {
        // A lock that is held is held by another restore.
        if let Ok(mut place) = BEFORE.try_lock()
            && let Some(before) = place.take()
        {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
        }
    }

    impl Drop for Hushed {
        fn drop(&mut self) {
            restore();
        }
    }
}

/// Nothing to hush here.
#[cfg(not(unix))]
pub struct Hushed(());

/// There is no such terminal here.
#[cfg(not(unix))]
pub fn hush() -> Hushed {
    Hushed(())
}

/// There is no such terminal here.
#[cfg(not(unix))]
pub fn restore() {}
