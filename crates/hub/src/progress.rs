//! What a download reports.

/// What a download has to say while it runs.
pub trait Progress {
    /// A file begins to arrive, of so many bytes if the hub says how many.
    fn begin(&mut self, file: &str, bytes: Option<u64>);
    /// So many bytes of the file are there.
    fn at(&mut self, bytes: u64);
    /// The file is there, or its transfer broke.
    fn end(&mut self);
    /// One line about something that takes time or is not as it should be.
    fn notice(&mut self, line: &str);
    /// Whether to end the download; asked several times a second.
    fn interrupted(&self) -> bool;
}
