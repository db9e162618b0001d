//! Packed pages: what stays of full pages of keys and values, in bf16 or int8, in a fixed number of bytes.
//!
//! A packed page is a packed weight of `docs/weight-format.md` in one run of memory, see [`PageLayout`]; which elements stay is
//! decided here.

use sparamx_cpu::Cpu;
use sparamx_format::page::{self, PageDtype, PageLayout, PageLine, PageView};
use sparamx_format::{Storage, WeightFormat};

use super::prune::{DensePage, PruneRule, Side};
use super::{PAGE_TOKENS, Page, PageShape};
use crate::KernelError;
use crate::linear::chunk::Strips;

/// How full pages are packed. The size of a packed page depends on nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// The dense pages.
    pub shape: PageShape,
    /// What the elements are.
    pub precision: PageDtype,
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
        precision: PageDtype,
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
        self.precision == PageDtype::Bf16 && self.key_dims >= all && self.value_dims >= all
    }

    /// Whether [`PackedPair::pack`] wants to know the magnitudes of queries.
    pub fn needs_query(&self) -> bool {
        self.rule == PruneRule::Query && self.key_dims < self.shape.head_dim
    }

    /// Bytes of a packed page of keys and one of values, a multiple of 64.
    pub fn pair_bytes(&self) -> usize {
        self.layout(Side::Key).bytes() + self.layout(Side::Value).bytes()
    }

    fn dims(&self, side: Side) -> usize {
        match side {
            Side::Key => self.key_dims,
            Side::Value => self.value_dims,
        }
    }

    fn layout(&self, side: Side) -> PageLayout {
        let dims = self.dims(side);
        let (n, k) = match (side, self.precision) {
            (Side::Key, PageDtype::Bf16) => (PAGE_TOKENS, self.shape.key_k()),
            (Side::Key, PageDtype::Int8) => (PAGE_TOKENS, self.shape.key_k_i8()),
            (Side::Value, _) => (self.shape.value_n(), PAGE_TOKENS),
        };
        PageLayout {
            n,
            k,
            dtype: self.precision,
            kept: (dims < self.shape.head_dim).then_some(PAGE_TOKENS * dims),
        }
    }
}

/// A packed page of keys or values.
#[derive(Clone, Copy)]
pub struct PackedPage<'a> {
    layout: PageLayout,
    bytes: &'a [u8],
    strips: Strips<'a>,
}

impl<'a> PackedPage<'a> {
    /// The form that it has.
    pub fn format(&self) -> WeightFormat {
        self.layout.format()
    }

    /// N and K, padded.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.layout.n, self.layout.k)
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
            *x = self.layout.element(self.bytes, slot, dim);
        }
    }

    /// As [`PackedPage::read_key`] for a page of values.
    ///
    /// # Panics
    /// Likewise.
    pub fn read_value(&self, slot: usize, value: &mut [f32]) {
        for (dim, x) in value.iter_mut().enumerate() {
            *x = self.layout.element(self.bytes, dim, slot);
        }
    }
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
        let (key, value) = pair.split_at(self.packing.layout(Side::Key).bytes());
        let layout = self.packing.layout(side);
        let bytes = match side {
            Side::Key => key,
            Side::Value => value,
        };
        match layout.view(bytes) {
            PageView::DenseBf16(lines) => Page::Dense(lines),
            view => Page::Packed(PackedPage {
                layout,
                bytes,
                strips: view.into(),
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
        let key_bytes = self.packing.layout(Side::Key).bytes();
        let (key_bytes, value_bytes) = self.bytes.split_at_mut(key_bytes);
        for (side, lines, out) in [
            (Side::Key, key, key_bytes),
            (Side::Value, value, value_bytes),
        ] {
            let job = Pack {
                page: DensePage { side, shape, lines },
                packing: &self.packing,
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
    query: &'a [f32],
}

impl Pack<'_> {
    #[inline(always)]
    fn run(&self, out: &mut [u8]) {
        self.packing.layout(self.page.side).pack(self, out);
    }
}

impl page::DensePage for Pack<'_> {
    #[inline(always)]
    fn lines(&self) -> &[PageLine] {
        self.page.lines.as_chunks().0
    }

    #[inline(always)]
    fn strip_lines(&self) -> usize {
        self.page.strips_and_lines().1
    }

    #[inline(always)]
    fn inside(&self, s: usize, l: usize) -> u32 {
        self.page.inside(s, l)
    }

    #[inline(always)]
    fn select(&self, masks: &mut [u32], mask_lines: usize) {
        let (packing, dims) = (self.packing, self.packing.dims(self.page.side));
        self.page
            .select(packing.rule, self.query, dims, masks, mask_lines);
    }
}
