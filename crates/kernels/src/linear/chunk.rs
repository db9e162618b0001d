//! What a linear kernel is given: one thread's share of a call.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use sparamx_cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use sparamx_cpu::{Amx, AmxInt8};
use sparamx_format::element::{Bf16, Int4, Int8};
use sparamx_format::page::PageView;
use sparamx_format::{LINE_ELEMS_BF16, LINE_ELEMS_I8, STRIP_ROWS, Scales, SparseView, Weight};

use super::activation::{Activation, SUM_K};
use super::out::Out;

/// Activations ready for a kernel: row `i` starts `i * stride` elements after the first byte and holds K elements rounded up to
/// what the weight has; those beyond K are finite (the weight is zero there). int8 rows go on as [`Activation::row_bytes`] says.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    pub bytes: &'a [u8],
    /// Elements from one row to the next.
    pub stride: usize,
    pub kind: Activation,
}

impl Activations<'_> {
    /// Whether `m` rows for a weight of `k_padded` columns are there, and those that fill up a group.
    fn have(&self, m: usize, k_padded: usize) -> bool {
        let rows = self.kind.padded_rows(m);
        let end =
            (rows.max(1) - 1) * self.stride * self.kind.bytes() + self.kind.row_bytes(k_padded);
        rows == 0 || end <= self.bytes.len()
    }
}

/// Strips of a weight or of a page, in whatever form they lie in memory.
#[derive(Clone, Copy)]
pub(crate) enum Strips<'a> {
    /// All lines of all strips.
    DenseBf16(&'a [u16]),
    /// Packed.
    SparseBf16(SparseView<'a, Bf16>),
    /// int8, all elements.
    DenseI8(&'a [i8], ScalesView<'a>),
    /// int8, packed.
    SparseI8(SparseView<'a, Int8>, ScalesView<'a>),
    /// int4, all elements, two to a byte.
    DenseI4(&'a [u8], ScalesView<'a>),
    /// int4, packed, two values to a byte.
    SparseI4(SparseView<'a, Int4>, ScalesView<'a>),
}

impl Strips<'_> {
    /// Strips that have all their lines or masks, and their scales, with `k_padded` columns.
    fn count(&self, k_padded: usize) -> usize {
        let elems = k_padded * STRIP_ROWS;
        let (lines, int_lines) = (elems / LINE_ELEMS_BF16, elems / LINE_ELEMS_I8);
        let all = |have: usize, each: usize| have.checked_div(each).unwrap_or(usize::MAX);
        match *self {
            Strips::DenseBf16(elements) => all(elements.len(), elems),
            Strips::SparseBf16(packed) => all(packed.masks.len(), lines),
            Strips::DenseI8(levels, scales) => all(levels.len(), elems).min(scales.count(k_padded)),
            Strips::DenseI4(pairs, scales) => {
                all(pairs.len(), elems / 2).min(scales.count(k_padded))
            }
            Strips::SparseI8(packed, scales) => {
                all(packed.masks.len(), int_lines).min(scales.count(k_padded))
            }
            Strips::SparseI4(packed, scales) => {
                all(packed.masks.len(), int_lines).min(scales.count(k_padded))
            }
        }
    }
}

/// What the levels of an int8 or int4 weight are worth.
#[derive(Clone, Copy)]
pub(crate) enum ScalesView<'a> {
    /// A scale for each output.
    Row(&'a [f32]),
    /// `[strips][groups][16]` bf16 bits, a scale for each output and `elems` k.
    Group {
        elems: usize,
        groups: usize,
        values: &'a [u16],
    },
}

impl ScalesView<'_> {
    /// Strips that have a scale for each output and `k_padded` columns.
    fn count(&self, k_padded: usize) -> usize {
        match *self {
            ScalesView::Row(values) => values.len() / STRIP_ROWS,
            ScalesView::Group {
                elems,
                groups,
                values,
            } if k_padded <= elems * groups => values.len() / (groups.max(1) * STRIP_ROWS),
            ScalesView::Group { .. } => 0,
        }
    }
}

impl<'a> From<&'a Scales> for ScalesView<'a> {
    fn from(scales: &'a Scales) -> Self {
        match scales {
            Scales::Row(values) => Self::Row(values),
            &Scales::Group {
                elems,
                groups,
                ref values,
            } => Self::Group {
                elems,
                groups,
                values,
            },
        }
    }
}

impl<'a> From<&'a Weight> for Strips<'a> {
    fn from(weight: &'a Weight) -> Self {
        match weight {
            Weight::DenseBf16(w) => Strips::DenseBf16(w.lines()),
            Weight::SparseBf16(w) => Strips::SparseBf16(w.view()),
            Weight::DenseI8(w) => Strips::DenseI8(w.lines(), w.scales().into()),
            Weight::SparseI8(w) => Strips::SparseI8(w.view(), w.scales().into()),
            Weight::DenseI4(w) => Strips::DenseI4(w.lines(), w.scales().into()),
            Weight::SparseI4(w) => Strips::SparseI4(w.view(), w.scales().into()),
        }
    }
}

impl<'a> From<PageView<'a>> for Strips<'a> {
    fn from(page: PageView<'a>) -> Self {
        match page {
            PageView::DenseBf16(lines) => Strips::DenseBf16(lines),
            PageView::SparseBf16(packed) => Strips::SparseBf16(packed),
            PageView::DenseI8(lines, scales) => Strips::DenseI8(lines, ScalesView::Row(scales)),
            PageView::SparseI8(packed, scales) => Strips::SparseI8(packed, ScalesView::Row(scales)),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const WRONG_FEATURES: &str = "a row of the catalog names the wrong features";
const WRONG_FORMAT: &str = "a row of the catalog names the wrong format of weights";

/// What a [`Chunk`] is made of.
#[derive(Clone)]
pub(crate) struct Parts<'a> {
    /// Where the kernel runs.
    pub cpu: Cpu,
    pub x: Activations<'a>,
    /// Rows of activations.
    pub m: usize,
    /// K rounded up to what the weight has: a multiple of 32 for bf16, of 64 for int8 and int4.
    pub k_padded: usize,
    pub weight: Strips<'a>,
    pub strips: Range<usize>,
    pub out: Out<'a>,
    /// If the weight is a page of keys or values: how many bytes after it the page begins that is read next, of the same form;
    /// 0 if none is. A kernel then prefetches that, not what follows a strip.
    pub page: Option<isize>,
}

/// One thread's share of a call: `strips` of a weight for all rows of activations.
///
/// Kernels rely on what [`Chunk::new`] checks and requires, and read its parts, which cannot be changed any more:
/// - *rows*: each of the M rows of activations, and of those that fill up a group, holds `k_padded` elements;
/// - *lines*: each of `strips` has all its lines or masks, and its scales;
/// - *values*: a packed strip has a value for each bit of its masks, and from any of them, or from behind the last, 64 bytes
///   can be read;
/// - *outputs*: the columns of `strips` in the M rows of the output are there, and this chunk's alone.
pub(crate) struct Chunk<'a>(Parts<'a>);

impl<'a> Deref for Chunk<'a> {
    type Target = Parts<'a>;

    #[inline(always)]
    fn deref(&self) -> &Parts<'a> {
        &self.0
    }
}

impl<'a> Chunk<'a> {
    /// Checks *rows*, *lines* and that *outputs* begin below N.
    ///
    /// # Safety
    /// *values*: the bits of the masks of a packed strip are no more than the values from its start on, of which the last
    /// 64 bytes are slack. *outputs*: `out` points to M rows of N columns, `out.stride` elements
    /// apart, and while the chunk lives nobody else uses the columns of `strips`.
    ///
    /// # Panics
    /// If there are too few activations, lines, masks, scales or outputs.
    pub unsafe fn new(parts: Parts<'a>) -> Self {
        let Parts { x, m, k_padded, .. } = parts;
        assert!(
            x.have(m, k_padded) && x.bytes.as_ptr().cast::<f32>().is_aligned(),
            "{} bytes of activations for {m} rows of {k_padded}",
            x.bytes.len()
        );
        let (end, outputs) = (parts.strips.end, parts.out.n.div_ceil(STRIP_ROWS));
        let strips = parts.weight.count(k_padded).min(outputs);
        assert!(end <= strips, "{end} strips of {strips}");
        Self(parts)
    }

    /// The proof of AMX tiles.
    ///
    /// # Panics
    /// If the CPU has none: a row of the catalog names the wrong features.
    #[cfg(target_arch = "x86_64")]
    pub fn amx(&self) -> Amx {
        self.cpu.amx().expect(WRONG_FEATURES)
    }

    /// The proof of AMX tiles of bytes.
    ///
    /// # Panics
    /// As [`amx`](Self::amx).
    #[cfg(target_arch = "x86_64")]
    pub fn amx_int8(&self) -> AmxInt8 {
        self.cpu.amx_int8().expect(WRONG_FEATURES)
    }

    /// Writes the 16 sums of row `i` and strip `s`, as [`Out::put`] does.
    ///
    /// # Panics
    /// If the row or the strip is not the chunk's.
    #[inline(always)]
    pub fn put(&self, i: usize, s: usize, sums: [f32; STRIP_ROWS]) {
        assert!(
            i < self.m && self.strips.contains(&s),
            "row {i} of {}, strip {s} of {:?}",
            self.m,
            self.strips
        );
        // SAFETY: row and strip are the chunk's, asserted in the line above, and so are the outputs (*outputs*).
        unsafe { self.out.put(i, s, sums) }
    }

    /// Lines of a bf16 strip.
    pub fn lines(&self) -> usize {
        self.k_padded / 2
    }

    /// Lines of an int8 or int4 strip.
    pub fn int_lines(&self) -> usize {
        self.k_padded / 4
    }

    /// Bytes from what is read to what is to be prefetched: `bytes`, or as far as the next page is.
    pub fn ahead(&self, bytes: isize) -> isize {
        self.page.unwrap_or(bytes)
    }

    /// Elements of a dense strip.
    pub fn strip_elems(&self) -> usize {
        self.lines() * LINE_ELEMS_BF16
    }

    /// The lines of dense strip `s`.
    ///
    /// # Panics
    /// If the weight is not dense or has no such strip: a row of the catalog names the wrong format.
    pub fn dense_strip(&self, s: usize) -> &'a [u16] {
        match self.weight {
            Strips::DenseBf16(lines) => &lines[s * self.strip_elems()..][..self.strip_elems()],
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// Masks and values of packed strip `s`. The values run on beyond the strip's own, to the end of the tensor, whose last
    /// 64 bytes are slack: a vector that begins at a value of the strip is inside.
    ///
    /// # Panics
    /// If the weight is not packed or has no such strip.
    pub fn sparse_strip(&self, s: usize) -> (&'a [u32], &'a [u16]) {
        match self.weight {
            Strips::SparseBf16(packed) => packed.strip(s, self.lines()),
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// The lines of dense int8 strip `s`.
    ///
    /// # Panics
    /// As [`dense_strip`](Self::dense_strip).
    pub fn dense_i8_strip(&self, s: usize) -> &'a [i8] {
        match self.weight {
            Strips::DenseI8(lines, _) => {
                let elems = self.int_lines() * LINE_ELEMS_I8;
                &lines[s * elems..][..elems]
            }
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// Masks and values of packed int8 strip `s`; the values run on as those of [`sparse_strip`](Self::sparse_strip).
    ///
    /// # Panics
    /// As [`sparse_strip`](Self::sparse_strip).
    pub fn sparse_i8_strip(&self, s: usize) -> (&'a [u64], &'a [i8]) {
        match self.weight {
            Strips::SparseI8(packed, _) => packed.strip(s, self.int_lines()),
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// The lines of dense int4 strip `s`, two to 64 bytes: line 2t in the low nibbles, line 2t + 1 in the high ones.
    ///
    /// # Panics
    /// As [`dense_strip`](Self::dense_strip).
    pub fn dense_i4_strip(&self, s: usize) -> &'a [u8] {
        match self.weight {
            Strips::DenseI4(lines, _) => {
                let bytes = self.int_lines() * LINE_ELEMS_I8 / 2;
                &lines[s * bytes..][..bytes]
            }
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// Masks and values of packed int4 strip `s`: the first value is the low nibble of the first byte. The bytes run on as
    /// the values of [`sparse_strip`](Self::sparse_strip).
    ///
    /// # Panics
    /// As [`sparse_strip`](Self::sparse_strip).
    pub fn sparse_i4_strip(&self, s: usize) -> (&'a [u64], &'a [u8]) {
        match self.weight {
            Strips::SparseI4(packed, _) => packed.strip(s, self.int_lines()),
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// The scales of an int8 or int4 weight.
    ///
    /// # Panics
    /// If the weight is bf16.
    fn scales(&self) -> ScalesView<'a> {
        match self.weight {
            Strips::DenseI8(_, scales)
            | Strips::SparseI8(_, scales)
            | Strips::DenseI4(_, scales)
            | Strips::SparseI4(_, scales) => scales,
            _ => panic!("{WRONG_FORMAT}"),
        }
    }

    /// Lines of an int8 or int4 strip that have one scale per output; the last group may have fewer.
    ///
    /// # Panics
    /// If the weight is bf16.
    pub fn group_lines(&self) -> usize {
        match self.scales() {
            ScalesView::Row(_) => self.int_lines(),
            ScalesView::Group { elems, .. } => elems / 4,
        }
    }

    /// The scales of strip `s`.
    ///
    /// # Panics
    /// If the weight is bf16 or has no such strip.
    pub fn strip_scales(&self, s: usize) -> StripScales<'a> {
        match self.scales() {
            ScalesView::Row(values) => StripScales::F32(&values[s * STRIP_ROWS..][..STRIP_ROWS]),
            ScalesView::Group { groups, values, .. } => {
                let count = groups * STRIP_ROWS;
                StripScales::Bf16(&values[s * count..][..count])
            }
        }
    }

    /// Pointers to `R` rows of f32 activations from row `first` on.
    pub fn f32_rows<const R: usize>(&self, first: usize) -> [*const f32; R] {
        assert!(
            self.x.kind == Activation::F32 && first + R <= self.m,
            "rows {first}..{} of {}",
            first + R,
            self.m
        );
        std::array::from_fn(|r| {
            self.x
                .bytes
                .as_ptr()
                .cast::<f32>()
                .wrapping_add((first + r) * self.x.stride)
        })
    }

    /// Pointers to `R` rows of bf16 activations from row `first` on.
    pub fn bf16_rows<const R: usize>(&self, first: usize) -> [*const u16; R] {
        let rows = Activation::Bf16.padded_rows(self.m);
        assert!(
            self.x.kind == Activation::Bf16 && first + R <= rows,
            "rows {first}..{} of {rows}",
            first + R
        );
        std::array::from_fn(|r| {
            self.x
                .bytes
                .as_ptr()
                .cast::<u16>()
                .wrapping_add((first + r) * self.x.stride)
        })
    }

    /// `R` rows of int8 activations from row `first` on.
    pub fn i8_rows<const R: usize>(&self, first: usize) -> [I8Row<'a>; R] {
        let rows = Activation::I8.padded_rows(self.m);
        assert!(
            self.x.kind == Activation::I8 && first + R <= rows,
            "rows {first}..{} of {rows}",
            first + R
        );
        std::array::from_fn(|r| I8Row {
            q: self
                .x
                .bytes
                .as_ptr()
                .cast::<i8>()
                .wrapping_add((first + r) * self.x.stride),
            k_padded: self.k_padded,
            bytes: PhantomData,
        })
    }

    /// `R` rows of 16-bit activations from row `first` on.
    pub fn i16_rows<const R: usize>(&self, first: usize) -> [I16Row<'a>; R] {
        assert!(
            self.x.kind == Activation::I16 && first + R <= self.m,
            "rows {first}..{} of {}",
            first + R,
            self.m
        );
        std::array::from_fn(|r| I16Row {
            q: self
                .x
                .bytes
                .as_ptr()
                .cast::<i16>()
                .wrapping_add((first + r) * self.x.stride),
            k_padded: self.k_padded,
            bytes: PhantomData,
        })
    }
}

/// A row of 16-bit activations, which only [`Chunk::i16_rows`] makes.
#[derive(Clone, Copy)]
pub(crate) struct I16Row<'a> {
    q: *const i16,
    k_padded: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl I16Row<'_> {
    /// The elements, K rounded up to a multiple of 64 of them.
    #[inline(always)]
    pub fn q(self) -> *const i16 {
        self.q
    }

    /// What an element must be multiplied by.
    #[inline(always)]
    pub fn scale(self) -> f32 {
        // SAFETY: the row is whole (`Chunk::new`), and its scale follows the elements, see `Activation::row_bytes`.
        unsafe { self.q.add(self.k_padded).cast::<f32>().read_unaligned() }
    }
}

/// The scales of a strip, 16 for each of its groups.
#[derive(Clone, Copy)]
pub(crate) enum StripScales<'a> {
    /// Of one group.
    F32(&'a [f32]),
    /// bf16 bits.
    Bf16(&'a [u16]),
}

impl StripScales<'_> {
    /// The scales of group `g`.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn group(self, g: usize) -> [f32; STRIP_ROWS] {
        let at = g * STRIP_ROWS;
        match self {
            Self::F32(scales) => std::array::from_fn(|j| scales[at + j]),
            Self::Bf16(bits) => {
                std::array::from_fn(|j| f32::from_bits(u32::from(bits[at + j]) << 16))
            }
        }
    }
}

/// A row of int8 activations, which only [`Chunk::i8_rows`] makes.
#[derive(Clone, Copy)]
pub(crate) struct I8Row<'a> {
    q: *const i8,
    k_padded: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl I8Row<'_> {
    /// The elements, K rounded up to a multiple of 64 of them.
    #[inline(always)]
    pub fn q(self) -> *const i8 {
        self.q
    }

    /// What an element must be multiplied by.
    #[inline(always)]
    pub fn scale(self) -> f32 {
        // SAFETY: the row is whole (`Chunk::new`), and its scale follows the elements, see `Activation::row_bytes`.
        unsafe { self.q.add(self.k_padded).cast::<f32>().read_unaligned() }
    }

    /// The sum of the elements `range` of k, both ends multiples of 32 or K rounded up. Unchecked: a check for each row at the end
    /// of each group would cost a tenth of what is done there.
    ///
    /// # Safety
    /// `range` is inside K rounded up.
    #[inline(always)]
    pub unsafe fn sum(self, range: Range<usize>) -> i32 {
        let sums = self.q.wrapping_add(self.k_padded + 4).cast::<i32>();
        let before = |k: usize| match k / SUM_K {
            0 => 0,
            // SAFETY: the row is whole (`Chunk::new`), the sums of its first 32, 64, 96 ... elements follow the scale, and k is
            // required to be at most K rounded up.
            n => unsafe { sums.add(n - 1).read_unaligned() },
        };
        before(range.end) - before(range.start)
    }
}
