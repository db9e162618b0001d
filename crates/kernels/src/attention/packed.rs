//! Packed pages: what stays of full pages of keys and values, in bf16 or int8, in a fixed number of bytes.
//!
//! A packed page is a packed weight of `docs/weight-format.md` in one run of memory, see [`Form`].

use std::fmt;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use sparamx_cpu::Cpu;
use sparamx_format::{
    LINE_BYTES, LINE_ELEMS_BF16, LINE_ELEMS_I8, SLACK_BYTES, STRIP_ROWS, Storage,
};

use super::prune::{DensePage, PruneRule, Side};
use super::{PAGE_TOKENS, Page, PageShape};
use crate::linear::activation::Quantizer;
use crate::linear::chunk::{PackedStrips, ScalesView, Strips};
use crate::{KernelError, WeightFormat};

/// What the elements of packed pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are.
    Bf16,
    /// Levels of -127 to 127; a scale for each token of a page of keys, for each dimension of a page of values.
    Int8,
}

impl Precision {
    /// All there are.
    pub const ALL: [Precision; 2] = [Precision::Bf16, Precision::Int8];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        })
    }
}

/// How full pages are packed. The size of a packed page depends on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// The dense pages.
    pub shape: PageShape,
    /// What the elements are.
    pub precision: Precision,
    /// Elements of a key that stay, on average over a page: exactly 64 times as many of a page. All if it is `head_dim`.
    pub key_dims: usize,
    /// Elements of a value that stay, likewise.
    pub value_dims: usize,
    /// Which ones.
    pub rule: PruneRule,
}

impl Packing {
    /// The packing that leaves out the shares `key_sparsity` and `value_sparsity`, to the nearest whole number of elements a
    /// token.
    ///
    /// # Panics
    /// If a share is not in 0 to 1.
    pub fn new(
        shape: PageShape,
        precision: Precision,
        key_sparsity: f32,
        value_sparsity: f32,
        rule: PruneRule,
    ) -> Self {
        let dims = |sparsity: f32| {
            assert!((0.0..=1.0).contains(&sparsity), "a sparsity of {sparsity}");
            ((1.0 - f64::from(sparsity)) * shape.head_dim as f64).round() as usize
        };
        Self {
            shape,
            precision,
            key_dims: dims(key_sparsity),
            value_dims: dims(value_sparsity),
            rule,
        }
    }

    /// Whether packed pages would be the dense pages once more.
    pub fn is_identity(&self) -> bool {
        let all = self.shape.head_dim;
        self.precision == Precision::Bf16 && self.key_dims >= all && self.value_dims >= all
    }

    /// Whether [`PackedPair::pack`] wants to know the magnitudes of queries.
    pub fn needs_query(&self) -> bool {
        self.rule == PruneRule::Query && self.key_dims < self.shape.head_dim
    }

    /// Bytes of a packed page of keys and one of values, a multiple of 64.
    pub fn pair_bytes(&self) -> usize {
        self.form(Side::Key).bytes() + self.form(Side::Value).bytes()
    }

    fn dims(&self, side: Side) -> usize {
        match side {
            Side::Key => self.key_dims,
            Side::Value => self.value_dims,
        }
    }

    fn form(&self, side: Side) -> Form {
        let dims = self.dims(side);
        let dense = dims >= self.shape.head_dim;
        let format = match (self.precision, dense) {
            (Precision::Bf16, true) => WeightFormat::DenseBf16,
            (Precision::Bf16, false) => WeightFormat::SparseBf16,
            (Precision::Int8, true) => WeightFormat::DenseI8,
            (Precision::Int8, false) => WeightFormat::SparseI8,
        };
        let (n, k) = match (side, self.precision) {
            (Side::Key, Precision::Bf16) => (PAGE_TOKENS, self.shape.key_k()),
            (Side::Key, Precision::Int8) => (PAGE_TOKENS, self.shape.key_k_i8()),
            (Side::Value, _) => (self.shape.value_n(), PAGE_TOKENS),
        };
        Form {
            n,
            k,
            kept: PAGE_TOKENS * dims,
            format,
        }
    }
}

/// The memory of a packed page of `n x k`, in this order, each part at a multiple of 64 bytes, without those that the format does
/// not have:
///
/// 1. for each strip where its values begin, u64;
/// 2. for each row its scale, f32;
/// 3. the masks of all lines;
/// 4. the elements: all lines, or the values that stay and 64 bytes of slack.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// A multiple of 16.
    n: usize,
    /// Padded as the format wants it.
    k: usize,
    /// Values of a sparse page.
    kept: usize,
    format: WeightFormat,
}

/// The parts of [`Form`].
struct Parts<T> {
    starts: T,
    scales: T,
    masks: T,
    elements: T,
}

impl Form {
    fn is_int8(self) -> bool {
        matches!(self.format, WeightFormat::DenseI8 | WeightFormat::SparseI8)
    }

    fn parts(self) -> Parts<Range<usize>> {
        let element_bytes = if self.is_int8() { 1 } else { 2 };
        let sparse = self.format.is_sparse();
        let mut end = 0;
        let mut part = |there: bool, bytes: usize| {
            let start = end;
            end += if there {
                bytes.next_multiple_of(LINE_BYTES)
            } else {
                0
            };
            start..end
        };
        let elements = if sparse {
            self.kept * element_bytes + SLACK_BYTES
        } else {
            self.n * self.k * element_bytes
        };
        Parts {
            starts: part(sparse, 8 * self.n / STRIP_ROWS),
            scales: part(self.is_int8(), 4 * self.n),
            masks: part(sparse, self.n * self.k / 8),
            elements: part(true, elements),
        }
    }

    fn bytes(self) -> usize {
        self.parts().elements.end
    }

    fn view(self, bytes: &[u8]) -> Strips<'_> {
        /// The alignment of the parts is that of every element.
        fn packed<'a, M: bytemuck::Pod, V: bytemuck::Pod>(
            bytes: &'a [u8],
            parts: &Parts<Range<usize>>,
        ) -> PackedStrips<'a, M, V> {
            PackedStrips {
                masks: cast_slice(&bytes[parts.masks.clone()]),
                values: cast_slice(&bytes[parts.elements.clone()]),
                starts: cast_slice(&bytes[parts.starts.clone()]),
                starts_step: 1,
            }
        }
        let parts = self.parts();
        let scales = || ScalesView::Row(cast_slice(&bytes[parts.scales.clone()]));
        let elements = &bytes[parts.elements.clone()];
        match self.format {
            WeightFormat::DenseBf16 => Strips::DenseBf16(cast_slice(elements)),
            WeightFormat::SparseBf16 => Strips::SparseBf16(packed(bytes, &parts)),
            WeightFormat::DenseI8 => Strips::DenseI8(cast_slice(elements), scales()),
            WeightFormat::SparseI8 => Strips::SparseI8(packed(bytes, &parts), scales()),
            WeightFormat::DenseI4 | WeightFormat::SparseI4 => unreachable!("no page is int4"),
        }
    }
}

/// A packed page of keys or values.
#[derive(Clone, Copy)]
pub struct PackedPage<'a> {
    form: Form,
    bytes: &'a [u8],
    strips: Strips<'a>,
}

impl<'a> PackedPage<'a> {
    /// The form that it has.
    pub fn format(&self) -> WeightFormat {
        self.form.format
    }

    /// N and K, padded.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.form.n, self.form.k)
    }

    pub(super) fn strips(&self) -> Strips<'a> {
        self.strips
    }

    /// Where its bytes begin.
    pub(super) fn start(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// The elements of a page of keys that stayed, by token: what is in slot `slot`, zeros for what was left out.
    ///
    /// # Panics
    /// If there is no such slot, or `key` is longer than a head.
    pub fn read_key(&self, slot: usize, key: &mut [f32]) {
        for (dim, x) in key.iter_mut().enumerate() {
            *x = self.element(slot, dim);
        }
    }

    /// As [`PackedPage::read_key`] for a page of values.
    ///
    /// # Panics
    /// Likewise.
    pub fn read_value(&self, slot: usize, value: &mut [f32]) {
        for (dim, x) in value.iter_mut().enumerate() {
            *x = self.element(dim, slot);
        }
    }

    /// Element (n, k) of the weight that the page is.
    fn element(&self, n: usize, k: usize) -> f32 {
        assert!(
            n < self.form.n && k < self.form.k,
            "element ({n}, {k}) of {:?}",
            self.form
        );
        let (s, j) = (n / STRIP_ROWS, n % STRIP_ROWS);
        // Columns of a line, and the element's place in all lines.
        let columns = if self.form.is_int8() { 4 } else { 2 };
        let line = s * (self.form.k / columns) + k / columns;
        let place = columns * j + k % columns;
        let dense = line * columns * STRIP_ROWS + place;
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let scale = |scales: ScalesView<'_>| match scales {
            ScalesView::Row(scales) => scales[n],
            ScalesView::Group { .. } => unreachable!("a page has a scale for each row"),
        };
        match self.strips {
            Strips::DenseBf16(lines) => widen(lines[dense]),
            Strips::DenseI8(lines, scales) => f32::from(lines[dense]) * scale(scales),
            Strips::SparseBf16(packed) => {
                let first = s * (self.form.k / columns);
                let masks = packed.masks[first..=line].iter().map(|&mask| mask.into());
                rank(masks, place).map_or(0.0, |rank| {
                    widen(packed.values[packed.starts[s] as usize + rank])
                })
            }
            Strips::SparseI8(packed, scales) => {
                let first = s * (self.form.k / columns);
                let masks = packed.masks[first..=line].iter().copied();
                rank(masks, place).map_or(0.0, |rank| {
                    f32::from(packed.values[packed.starts[s] as usize + rank]) * scale(scales)
                })
            }
            Strips::DenseI4(..) | Strips::SparseI4(..) => unreachable!("no page is int4"),
        }
    }
}

/// How many bits come before bit `place` of the last mask, if that is set.
fn rank(masks: impl DoubleEndedIterator<Item = u64>, place: usize) -> Option<usize> {
    let mut masks = masks.rev();
    let last = masks.next()?;
    let before = masks.map(u64::count_ones).sum::<u32>() + (last & ((1 << place) - 1)).count_ones();
    (last >> place & 1 == 1).then_some(before as usize)
}

/// Pairs of a packed page of keys and one of values. Pages that were not packed yet hold zeros.
pub struct PackedPages {
    packing: Packing,
    pairs: usize,
    bytes: Storage<u8>,
}

impl PackedPages {
    /// `pairs` pairs.
    ///
    /// # Errors
    /// [`KernelError::Memory`] if the system refuses the memory.
    pub fn new(packing: Packing, pairs: usize) -> Result<Self, KernelError> {
        let bytes = packing.pair_bytes().saturating_mul(pairs);
        Ok(Self {
            packing,
            pairs,
            bytes: Storage::zeroed(bytes).map_err(|_| KernelError::Memory { bytes })?,
        })
    }

    /// How they are packed.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Bytes of all pairs.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The page of keys of pair `pair`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn key(&self, pair: usize) -> Page<'_> {
        self.page(pair, Side::Key)
    }

    /// The page of values of pair `pair`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn value(&self, pair: usize) -> Page<'_> {
        self.page(pair, Side::Value)
    }

    fn page(&self, pair: usize, side: Side) -> Page<'_> {
        let pair_bytes = self.packing.pair_bytes();
        let pair = &self.bytes[pair * pair_bytes..][..pair_bytes];
        let (key, value) = pair.split_at(self.packing.form(Side::Key).bytes());
        let form = self.packing.form(side);
        let bytes = match side {
            Side::Key => key,
            Side::Value => value,
        };
        match form.view(bytes) {
            Strips::DenseBf16(lines) => Page::Dense(lines),
            strips => Page::Packed(PackedPage {
                form,
                bytes,
                strips,
            }),
        }
    }

    /// All pairs, to be packed by whatever threads.
    pub fn pairs_mut(&mut self) -> impl ExactSizeIterator<Item = PackedPair<'_>> {
        let packing = self.packing;
        let bytes = self.bytes.as_mut_slice().expect("pages are never cloned");
        let pairs = bytes.chunks_exact_mut(packing.pair_bytes());
        pairs.map(move |bytes| PackedPair { packing, bytes })
    }
}

/// A pair of [`PackedPages`], to be packed.
pub struct PackedPair<'a> {
    packing: Packing,
    bytes: &'a mut [u8],
}

impl PackedPair<'_> {
    /// Packs a full dense page of keys and one of values. `query` is the sum, or mean, of the magnitudes of the queries for each
    /// dimension; it is only looked at if [`Packing::needs_query`].
    ///
    /// # Panics
    /// If a page or `query` has another length than the packing's shape says.
    pub fn pack(&mut self, cpu: &Cpu, key: &[u16], value: &[u16], query: &[f32]) {
        let Packing { shape, .. } = self.packing;
        assert_eq!(key.len(), shape.key_elems(), "elements of a page of keys");
        assert_eq!(
            value.len(),
            shape.value_elems(),
            "elements of a page of values"
        );
        if self.packing.needs_query() {
            assert_eq!(
                query.len(),
                shape.head_dim,
                "query magnitudes and elements of a head"
            );
        }
        let key_bytes = self.packing.form(Side::Key).bytes();
        let (key_bytes, value_bytes) = self.bytes.split_at_mut(key_bytes);
        for (side, lines, out) in [
            (Side::Key, key, key_bytes),
            (Side::Value, value, value_bytes),
        ] {
            let job = Pack {
                page: DensePage { side, shape, lines },
                packing: &self.packing,
                form: self.packing.form(side),
                query,
            };
            #[cfg(target_arch = "x86_64")]
            if cpu.avx2().is_some() {
                // SAFETY: the token proves that the CPU has the level.
                unsafe { pack_avx2(&job, out) };
                continue;
            }
            let _ = cpu;
            job.run(out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
sparamx_cpu::avx2_fns!(
    /// [`Pack::run`] in AVX2 code.
    fn pack_avx2(job: &Pack<'_>, out: &mut [u8]) {
        job.run(out);
    }
);

/// One page to be packed.
struct Pack<'a> {
    page: DensePage<'a>,
    packing: &'a Packing,
    form: Form,
    query: &'a [f32],
}

impl Pack<'_> {
    #[inline(always)]
    fn run(&self, out: &mut [u8]) {
        let parts = self.form.parts();
        let (head, elements) = out.split_at_mut(parts.elements.start);
        let (head, masks) = head.split_at_mut(parts.masks.start);
        let (starts, scales) = head.split_at_mut(parts.scales.start);
        let starts: &mut [u64] = cast_slice_mut(starts);
        let scales: &mut [f32] = cast_slice_mut(scales);
        match self.form.format {
            WeightFormat::DenseBf16 => cast_slice_mut(elements).copy_from_slice(self.page.lines),
            WeightFormat::SparseBf16 => {
                self.select(cast_slice_mut(masks));
                self.keep_bf16(cast_slice(masks), starts, cast_slice_mut(elements));
            }
            WeightFormat::SparseI8 => {
                self.select(cast_slice_mut(masks));
                self.keep_levels(
                    cast_slice_mut(masks),
                    starts,
                    scales,
                    cast_slice_mut(elements),
                );
            }
            WeightFormat::DenseI8 => self.all_levels(scales, cast_slice_mut(elements)),
            WeightFormat::DenseI4 | WeightFormat::SparseI4 => unreachable!("no page is int4"),
        }
    }

    /// Lines of 32 elements of a strip that the packed page has: its own, and padding of int8.
    fn mask_lines(&self) -> usize {
        self.form.k / 2
    }

    #[inline(always)]
    fn select(&self, masks: &mut [u32]) {
        let dims = self.packing.dims(self.page.side);
        masks.fill(0);
        self.page.select(
            self.packing.rule,
            self.query,
            dims,
            masks,
            self.mask_lines(),
        );
    }

    /// The lines of strip `s`.
    fn strip(&self, s: usize) -> impl Iterator<Item = &[u16; LINE_ELEMS_BF16]> + Clone {
        let (_, lines) = self.page.strips_and_lines();
        let (all, _) = self.page.lines.as_chunks();
        all[s * lines..][..lines].iter()
    }

    #[inline(always)]
    fn keep_bf16(&self, masks: &[u32], starts: &mut [u64], values: &mut [u16]) {
        let mut count = 0;
        for (s, masks) in masks.chunks_exact(self.mask_lines()).enumerate() {
            starts[s] = count as u64;
            for (&mask, line) in masks.iter().zip(self.strip(s)) {
                let mut rest = mask;
                while rest != 0 {
                    values[count] = line[rest.trailing_zeros() as usize];
                    count += 1;
                    rest &= rest - 1;
                }
            }
        }
    }

    /// `masks` go from those of lines of 32 bf16 elements to those of lines of 64 levels.
    #[inline(always)]
    fn keep_levels(
        &self,
        masks: &mut [u64],
        starts: &mut [u64],
        scales: &mut [f32],
        values: &mut [i8],
    ) {
        let mut count = 0;
        let strips = masks.chunks_exact_mut(self.mask_lines() / 2);
        for ((s, masks), scales) in strips.enumerate().zip(scales.chunks_exact_mut(STRIP_ROWS)) {
            starts[s] = count as u64;
            let halves = |masks: &[u64]| -> Vec<u32> { cast_slice(masks).to_vec() };
            let quantizers = self.quantizers(s, halves(masks).into_iter());
            std::iter::zip(scales, &quantizers).for_each(|(scale, q)| *scale = q.scale);
            self.each_line(s, &quantizers, |l, levels| {
                let pair = masks[l];
                masks[l] = interleave(pair as u32, (pair >> 32) as u32);
                let mut rest = masks[l];
                while rest != 0 {
                    values[count] = levels[rest.trailing_zeros() as usize];
                    count += 1;
                    rest &= rest - 1;
                }
            });
        }
    }

    #[inline(always)]
    fn all_levels(&self, scales: &mut [f32], levels: &mut [i8]) {
        levels.fill(0);
        let strips = levels.chunks_exact_mut(self.form.k * STRIP_ROWS);
        for ((s, strip), scales) in strips.enumerate().zip(scales.chunks_exact_mut(STRIP_ROWS)) {
            let (_, lines) = self.page.strips_and_lines();
            let quantizers = self.quantizers(s, (0..lines).map(|l| self.page.inside(s, l)));
            std::iter::zip(scales, &quantizers).for_each(|(scale, q)| *scale = q.scale);
            let inside = |l| if l < lines { self.page.inside(s, l) } else { 0 };
            self.each_line(s, &quantizers, |l, levels| {
                let mask = interleave(inside(2 * l), inside(2 * l + 1));
                for (e, to) in strip[l * LINE_ELEMS_I8..][..LINE_ELEMS_I8]
                    .iter_mut()
                    .enumerate()
                {
                    *to = if mask >> e & 1 == 1 { levels[e] } else { 0 };
                }
            });
        }
    }

    /// For each row of strip `s`, how the elements that `masks` keep are quantized.
    #[inline(always)]
    fn quantizers(&self, s: usize, masks: impl Iterator<Item = u32>) -> [Quantizer; STRIP_ROWS] {
        let mut most = [0u16; LINE_ELEMS_BF16];
        for (line, mask) in self.strip(s).zip(masks) {
            for e in 0..LINE_ELEMS_BF16 {
                let kept = 0u16.wrapping_sub((mask >> e & 1) as u16);
                most[e] = most[e].max(line[e] & 0x7fff & kept);
            }
        }
        std::array::from_fn(|j| {
            let bits = most[2 * j].max(most[2 * j + 1]);
            Quantizer::of(f32::from_bits(u32::from(bits) << 16))
        })
    }

    /// Calls `then` with each line of 64 levels of strip `s` that is not all padding.
    #[inline(always)]
    fn each_line(
        &self,
        s: usize,
        quantizers: &[Quantizer; STRIP_ROWS],
        mut then: impl FnMut(usize, &[i8; LINE_ELEMS_I8]),
    ) {
        let mut lines = self.strip(s);
        let mut l = 0;
        while let Some(first) = lines.next() {
            let second = lines.next().unwrap_or(&[0; LINE_ELEMS_BF16]);
            let mut levels = [0; LINE_ELEMS_I8];
            for (j, quantizer) in quantizers.iter().enumerate() {
                for p in 0..2 {
                    let level = |bits: u16| quantizer.level(f32::from_bits(u32::from(bits) << 16));
                    levels[4 * j + p] = level(first[2 * j + p]);
                    levels[4 * j + 2 + p] = level(second[2 * j + p]);
                }
            }
            then(l, &levels);
            l += 1;
        }
    }
}

/// The mask of a line of 64: two bits of `first`, two of `second`, and so on.
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
