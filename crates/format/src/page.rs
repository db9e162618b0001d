//! Packed pages: what stays of dense bf16 lines, in bf16 or int8, in a fixed number of bytes.
//!
//! A packed page is a weight of `docs/weight-format.md` in one run of memory, see [`PageLayout`]; packing goes through the packer
//! of weights. Everything that packs is plain Rust to be inlined: inside a function for a level of CPU it becomes code of that
//! level.

use std::fmt;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::element::{Bf16, Element, Int8, Mask};
use crate::pack::keep;
use crate::shape::{LINE_BYTES, LINE_ELEMS_BF16, LINE_ELEMS_I8, SLACK_BYTES, STRIP_ROWS};
use crate::sparse::SparseView;
use crate::{Quantizer, WeightFormat};

/// What the elements of packed pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageDtype {
    /// As they are.
    Bf16,
    /// Levels of -127 to 127, and a scale for each row of the page.
    Int8,
}

impl PageDtype {
    /// All there are.
    pub const ALL: [PageDtype; 2] = [PageDtype::Bf16, PageDtype::Int8];

    /// The format of a page, with or without zeros.
    pub const fn format(self, sparse: bool) -> WeightFormat {
        match self {
            PageDtype::Bf16 => WeightFormat::new(Bf16::KIND, sparse),
            PageDtype::Int8 => WeightFormat::new(Int8::KIND, sparse),
        }
    }
}

impl fmt::Display for PageDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.format(false).element().fmt(f)
    }
}

/// A line of a dense bf16 page.
pub type PageLine = <Bf16 as Element>::Line;

/// A dense bf16 page that is to be packed.
pub trait DensePage {
    /// All lines, strip after strip.
    fn lines(&self) -> &[PageLine];

    /// Lines of a strip; the packed page may have more, for padding.
    fn strip_lines(&self) -> usize;

    /// The elements of line `l` of strip `s` that are no padding, one bit each.
    fn inside(&self, s: usize, l: usize) -> u32;

    /// Writes for each line the mask of the elements that stay to `masks`, which are zero; those of a strip begin `mask_lines`
    /// after those of the strip before.
    fn select(&self, masks: &mut [u32], mask_lines: usize);
}

/// The memory of a packed page of `n x k`, in this order, each part at a multiple of 64 bytes, without those that the format does
/// not have:
///
/// 1. for each strip where its values begin, u64;
/// 2. for each row its scale, f32;
/// 3. the masks of all lines;
/// 4. the elements: all lines, or the values that stay and 64 bytes of slack.
#[derive(Debug, Clone, Copy)]
pub struct PageLayout {
    /// Rows, a multiple of 16.
    pub n: usize,
    /// Columns, padded as the format wants it.
    pub k: usize,
    /// What the elements are.
    pub dtype: PageDtype,
    /// Values that stay, if zeros are left out.
    pub kept: Option<usize>,
}

/// The parts of [`PageLayout`].
struct Parts<T> {
    starts: T,
    scales: T,
    masks: T,
    elements: T,
}

/// What a kernel reads of a packed page; the scales are of rows.
#[derive(Debug, Clone, Copy)]
pub enum PageView<'a> {
    /// bf16, all lines.
    DenseBf16(&'a [u16]),
    /// bf16, packed.
    SparseBf16(SparseView<'a, Bf16>),
    /// int8, all lines.
    DenseI8(&'a [i8], &'a [f32]),
    /// int8, packed.
    SparseI8(SparseView<'a, Int8>, &'a [f32]),
}

impl PageLayout {
    /// The format of the page.
    pub fn format(self) -> WeightFormat {
        self.dtype.format(self.kept.is_some())
    }

    /// Bytes of the page, a multiple of 64.
    pub fn bytes(self) -> usize {
        self.parts().elements.end
    }

    #[inline(always)]
    fn parts(self) -> Parts<Range<usize>> {
        let (element_bytes, scale_bytes) = match self.dtype {
            PageDtype::Bf16 => (size_of::<<Bf16 as Element>::Unit>(), 0),
            PageDtype::Int8 => (size_of::<<Int8 as Element>::Unit>(), 4 * self.n),
        };
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(LINE_BYTES);
            start..end
        };
        let (starts, masks, elements) = match self.kept {
            Some(kept) => (
                8 * self.n / STRIP_ROWS,
                self.n * self.k / 8,
                kept * element_bytes + SLACK_BYTES,
            ),
            None => (0, 0, self.n * self.k * element_bytes),
        };
        Parts {
            starts: part(starts),
            scales: part(scale_bytes),
            masks: part(masks),
            elements: part(elements),
        }
    }

    /// What is in the page.
    ///
    /// # Panics
    /// If `bytes` are not [`PageLayout::bytes`] at a multiple of 8.
    #[inline]
    pub fn view(self, bytes: &[u8]) -> PageView<'_> {
        let parts = self.parts();
        let (elements, scales) = (&bytes[parts.elements.clone()], &bytes[parts.scales.clone()]);
        match (self.dtype, self.kept) {
            (PageDtype::Bf16, None) => PageView::DenseBf16(cast_slice(elements)),
            (PageDtype::Bf16, Some(_)) => PageView::SparseBf16(packed(bytes, &parts)),
            (PageDtype::Int8, None) => PageView::DenseI8(cast_slice(elements), cast_slice(scales)),
            (PageDtype::Int8, Some(_)) => {
                PageView::SparseI8(packed(bytes, &parts), cast_slice(scales))
            }
        }
    }

    /// Element (n, k) of the weight that the page in `bytes` is.
    ///
    /// # Panics
    /// If there is no such element, or as [`PageLayout::view`].
    pub fn element(self, bytes: &[u8], n: usize, k: usize) -> f32 {
        assert!(n < self.n && k < self.k, "element ({n}, {k}) of {self:?}");
        match self.view(bytes) {
            PageView::DenseBf16(lines) => Bf16::to_f32(lines[self.place::<Bf16>(n, k)]),
            PageView::DenseI8(lines, scales) => {
                Int8::to_f32(lines[self.place::<Int8>(n, k)]) * scales[n]
            }
            PageView::SparseBf16(packed) => self.kept_element(packed, n, k),
            PageView::SparseI8(packed, scales) => self.kept_element(packed, n, k) * scales[n],
        }
    }

    /// The place of element (n, k) among those of all lines.
    fn place<E: Element>(self, n: usize, k: usize) -> usize {
        let (s, j) = (n / STRIP_ROWS, n % STRIP_ROWS);
        let line = (s * self.k + k) / E::COLUMNS;
        line * E::LINE_ELEMS + E::COLUMNS * j + k % E::COLUMNS
    }

    /// The value of element (n, k) if it stayed, else 0.
    fn kept_element<E: Element>(self, packed: SparseView<'_, E>, n: usize, k: usize) -> f32 {
        let (s, place) = (n / STRIP_ROWS, self.place::<E>(n, k));
        let (line, bit) = (place / E::LINE_ELEMS, place % E::LINE_ELEMS);
        let mask: u64 = packed.masks[line].into();
        if mask >> bit & 1 == 0 {
            return 0.0;
        }
        let first = s * self.k / E::COLUMNS;
        let lines: usize = packed.masks[first..line]
            .iter()
            .map(|mask| mask.ones())
            .sum();
        let in_line = (mask & ((1 << bit) - 1)).count_ones() as usize;
        let start = packed.starts[s * packed.starts_step] as usize;
        E::to_f32(E::get(packed.values, start + lines + in_line))
    }

    /// Packs a page into `out`, [`PageLayout::bytes`] at a multiple of 8.
    ///
    /// # Panics
    /// If `out` or the page has another size than the layout says, or more elements stay than there is room for.
    #[inline(always)]
    pub fn pack(self, page: &impl DensePage, out: &mut [u8]) {
        let parts = self.parts();
        let (head, elements) = out.split_at_mut(parts.elements.start);
        let (head, masks) = head.split_at_mut(parts.masks.start);
        let (starts, scales) = head.split_at_mut(parts.scales.start);
        let starts: &mut [u64] = cast_slice_mut(starts);
        let scales: &mut [f32] = cast_slice_mut(scales);
        if self.kept.is_some() {
            masks.fill(0);
            page.select(cast_slice_mut(masks), self.bf16_lines());
        }
        match (self.dtype, self.kept) {
            (PageDtype::Bf16, None) => elements.copy_from_slice(cast_slice(page.lines())),
            (PageDtype::Bf16, Some(_)) => {
                self.keep_bf16(page, cast_slice(masks), starts, cast_slice_mut(elements));
            }
            (PageDtype::Int8, Some(_)) => {
                let (masks, elements) = (cast_slice_mut(masks), cast_slice_mut(elements));
                self.keep_levels(page, masks, starts, scales, elements);
            }
            (PageDtype::Int8, None) => self.all_levels(page, scales, cast_slice_mut(elements)),
        }
    }

    /// Lines of 32 elements of a strip that the packed page has: those of the dense page, and padding of int8.
    fn bf16_lines(self) -> usize {
        self.k / Bf16::COLUMNS
    }

    #[inline(always)]
    fn keep_bf16(
        self,
        page: &impl DensePage,
        masks: &[u32],
        starts: &mut [u64],
        values: &mut [u16],
    ) {
        let mut count = 0;
        for (s, masks) in masks.chunks_exact(self.bf16_lines()).enumerate() {
            starts[s] = count as u64;
            for (&mask, line) in masks.iter().zip(strip(page, s)) {
                count = keep::<Bf16>(line, mask, values, count);
            }
        }
    }

    /// `masks` go from those of lines of 32 bf16 elements to those of lines of 64 levels.
    #[inline(always)]
    fn keep_levels(
        self,
        page: &impl DensePage,
        masks: &mut [u64],
        starts: &mut [u64],
        scales: &mut [f32],
        values: &mut [i8],
    ) {
        let mut count = 0;
        let strips = masks.chunks_exact_mut(self.bf16_lines() / 2);
        for ((s, masks), scales) in strips.enumerate().zip(scales.chunks_exact_mut(STRIP_ROWS)) {
            starts[s] = count as u64;
            let halves: Vec<u32> = cast_slice(masks).to_vec();
            let quantizers = quantizers(strip(page, s), halves.into_iter());
            std::iter::zip(scales, &quantizers).for_each(|(scale, q)| *scale = q.scale);
            each_line(strip(page, s), &quantizers, |l, levels| {
                let pair = masks[l];
                masks[l] = interleave(pair as u32, (pair >> 32) as u32);
                count = keep::<Int8>(levels, masks[l], values, count);
            });
        }
    }

    #[inline(always)]
    fn all_levels(self, page: &impl DensePage, scales: &mut [f32], levels: &mut [i8]) {
        levels.fill(0);
        let lines = page.strip_lines();
        let strips = levels.chunks_exact_mut(self.k * STRIP_ROWS);
        for ((s, out), scales) in strips.enumerate().zip(scales.chunks_exact_mut(STRIP_ROWS)) {
            let inside = |l| if l < lines { page.inside(s, l) } else { 0 };
            let quantizers = quantizers(strip(page, s), (0..lines).map(inside));
            std::iter::zip(scales, &quantizers).for_each(|(scale, q)| *scale = q.scale);
            each_line(strip(page, s), &quantizers, |l, levels| {
                let mask = interleave(inside(2 * l), inside(2 * l + 1));
                let out = &mut out[l * LINE_ELEMS_I8..][..LINE_ELEMS_I8];
                for (e, to) in out.iter_mut().enumerate() {
                    *to = if mask >> e & 1 == 1 { levels[e] } else { 0 };
                }
            });
        }
    }
}

/// The alignment of the parts is that of every element.
fn packed<'a, E: Element>(bytes: &'a [u8], parts: &Parts<Range<usize>>) -> SparseView<'a, E> {
    SparseView {
        masks: cast_slice(&bytes[parts.masks.clone()]),
        values: cast_slice(&bytes[parts.elements.clone()]),
        starts: cast_slice(&bytes[parts.starts.clone()]),
        starts_step: 1,
    }
}

/// The lines of strip `s`.
#[inline(always)]
fn strip(page: &impl DensePage, s: usize) -> impl Iterator<Item = &PageLine> + Clone {
    let lines = page.strip_lines();
    page.lines()[s * lines..][..lines].iter()
}

/// For each row of a strip, how the elements that `masks` keep are quantized.
#[inline(always)]
fn quantizers<'a>(
    lines: impl Iterator<Item = &'a PageLine>,
    masks: impl Iterator<Item = u32>,
) -> [Quantizer; STRIP_ROWS] {
    let mut most = [0u16; LINE_ELEMS_BF16];
    for (line, mask) in lines.zip(masks) {
        for e in 0..LINE_ELEMS_BF16 {
            let kept = 0u16.wrapping_sub((mask >> e & 1) as u16);
            most[e] = most[e].max(line[e] & 0x7fff & kept);
        }
    }
    std::array::from_fn(|j| Quantizer::new(Bf16::to_f32(most[2 * j].max(most[2 * j + 1]))))
}

/// Calls `then` with each line of 64 levels of a strip that is not all padding.
#[inline(always)]
fn each_line<'a>(
    mut lines: impl Iterator<Item = &'a PageLine>,
    quantizers: &[Quantizer; STRIP_ROWS],
    mut then: impl FnMut(usize, &[i8; LINE_ELEMS_I8]),
) {
    let mut l = 0;
    while let Some(first) = lines.next() {
        let second = lines.next().unwrap_or(&[0; LINE_ELEMS_BF16]);
        let mut levels = [0; LINE_ELEMS_I8];
        for (j, quantizer) in quantizers.iter().enumerate() {
            for p in 0..2 {
                let level = |bits: u16| quantizer.level(Bf16::to_f32(bits));
                levels[4 * j + p] = level(first[2 * j + p]);
                levels[4 * j + 2 + p] = level(second[2 * j + p]);
            }
        }
        then(l, &levels);
        l += 1;
    }
}

/// The mask of a line of 64: two bits of `first`, two of `second`, and so on.
#[inline(always)]
fn interleave(first: u32, second: u32) -> u64 {
    let apart = |mask: u32| {
        let mask = u64::from(mask);
        let mask = (mask | mask << 16) & 0x0000_ffff_0000_ffff;
        let mask = (mask | mask << 8) & 0x00ff_00ff_00ff_00ff;
        let mask = (mask | mask << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        (mask | mask << 2) & 0x3333_3333_3333_3333
    };
    apart(first) | apart(second) << 2
}
