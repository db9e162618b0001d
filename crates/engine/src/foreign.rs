//! Calls into crates that panic on input that they cannot take.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside such a call.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Makes a panic of `call` an error with its message.
///
/// `call` must be a call into a foreign crate and nothing else. A panic there means input that the crate did not foresee: for
/// its caller bad input like any other. What it worked on is not used again, or is data that it only reads.
///
/// By default the message would also be printed. Panics inside such a call stay silent; every other panic, which is a bug of
/// ours, goes to the hook that was there before.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                before(info);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(outer);
    result.map_err(|payload| panic_message(&*payload))
}

/// What a panic says: a text, as `panic!` makes it. The standard library repeats the text that an index is wrong for, which may
/// be somebody's prompt: that is left out.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("it gives no reason");
    let end = text.find(" of `").unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_next_one_is_printed_again() {
        assert_eq!(guarded(|| 7), Ok(7));
        let empty: &[u8] = &[];
        let error = guarded(|| empty[std::hint::black_box(3)]).unwrap_err();
        assert!(error.contains("index out of bounds"), "{error}");
        assert_eq!(guarded(|| panic!("text")), Err::<(), _>("text".to_owned()));
        let nested = guarded(|| {
            let inner = guarded(|| panic!("inner"));
            (INSIDE.get(), inner)
        });
        assert_eq!(nested, Ok((true, Err::<(), _>("inner".to_owned()))));
        assert!(!INSIDE.get());
    }

    #[test]
    fn a_text_that_is_indexed_is_not_repeated() {
        let text = std::hint::black_box("my secret é");
        let error = guarded(|| text[..text.len() - 1].len()).unwrap_err();
        assert!(
            error.contains("char boundary") && !error.contains("secret"),
            "{error}"
        );
    }
}
