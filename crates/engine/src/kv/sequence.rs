//! The pages of one sequence.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use sparamx_kernels::attention::{KvPages, PAGE_TOKENS, PackedPages, Page, PageDtype};
use sparamx_kernels::{Rows, Runtime};
use sparamx_model::{Config, KvCache, ModelError};

use super::layout::{Pair, pages};
use super::options::{Forms, KvOptions, UNDO_TOKENS};
use super::pool::PagePool;
use super::prefix::{NodeId, ROOT};
use super::slot::{Job, Packed, Slot};
use super::write::{self, New, share_out};
use crate::EngineError;

/// A page is packed layer by layer while the last page in which it is needed dense fills: from this slot on, when what it
/// follows can hardly be taken back, ...
const PACKING_SLOT: usize = UNDO_TOKENS;
/// ... and in so many steps of a token, so that it is done well before the page is full.
const PACKING_STEPS: usize = 32;

/// Keys and values of one sequence. Memory comes from a [`PagePool`], page by page.
pub struct PagedCache {
    pool: PagePool,
    /// Page `i` has positions `64 i ..`. There may be more pages than the tokens need.
    slots: Vec<Slot>,
    len: usize,
    limit: usize,
    /// The first tokens, as far as they were named.
    ids: Vec<u32>,
    /// What the first page is known by in the tree beside its tokens: see [`PagePool::resume_salted`].
    salt: Arc<[u32]>,
    /// The nodes of the first pages in the tree. The slot of each holds a block of its node, which keeps the node there.
    path: Vec<NodeId>,
    /// From the sinks up to here pages are packed, and their dense form is not needed any more.
    retired: usize,
}

/// What a page is known by after its parent: its tokens, and a first page by the salt as well.
fn page_key<'k>(parent: NodeId, ids: &'k [u32], salt: &[u32]) -> Cow<'k, [u32]> {
    if parent == ROOT && !salt.is_empty() {
        Cow::Owned([ids, salt].concat())
    } else {
        Cow::Borrowed(ids)
    }
}

impl PagePool {
    /// A sequence without tokens.
    pub fn sequence(&self) -> PagedCache {
        PagedCache::empty(self.clone(), usize::MAX)
    }

    /// A sequence that begins with the longest part of `tokens` that the prefix cache has: whole pages, and less than all of
    /// the tokens, so that one is left whose logits say how to go on.
    pub fn resume(&self, tokens: &[u32]) -> PagedCache {
        self.resume_salted(tokens, None)
    }

    /// The same among the pages of sequences with this salt only; none is a salt of its own.
    pub fn resume_salted(&self, tokens: &[u32], salt: Option<&str>) -> PagedCache {
        let mut sequence = self.sequence();
        // No id is that large, so that no page of tokens is known by the same.
        let salt = salt.into_iter().flat_map(|salt| {
            let bytes = salt.bytes().map(u32::from);
            std::iter::once(u32::MAX).chain(bytes)
        });
        sequence.salt = salt.collect();
        let whole = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        sequence.find(tokens, whole);
        sequence
    }
}

impl PagedCache {
    /// An empty cache for up to `max_tokens` tokens of the model with this `config`, with a pool of its own.
    ///
    /// # Errors
    /// `max_tokens` is 0; there is no memory for a single page.
    pub fn new(config: &Config, max_tokens: usize) -> Result<Self, EngineError> {
        if max_tokens == 0 {
            return Err(EngineError::parameter("context", 0, "1 token or more"));
        }
        let pool = PagePool::new(config, &KvOptions::default())?;
        Ok(Self::empty(pool, max_tokens))
    }

    fn empty(pool: PagePool, limit: usize) -> Self {
        let retired = pool.forms().sinks;
        Self {
            pool,
            slots: Vec::new(),
            len: 0,
            limit,
            ids: Vec::new(),
            salt: Arc::default(),
            path: Vec::new(),
            retired,
        }
    }

    /// Where its pages come from.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// The first of its tokens, as far as they were named.
    pub fn tokens(&self) -> &[u32] {
        &self.ids
    }

    /// Bytes of its pages, those that it shares included.
    pub fn bytes(&self) -> u64 {
        let dense = self.slots.iter().filter(|slot| slot.dense.is_some());
        let packed = self.slots.iter().filter(|slot| slot.packed.is_some());
        self.pool.bytes_of(dense.count(), packed.count())
    }

    /// Gets the memory for `tokens` tokens after those it holds, so that adding them cannot fail for want of it. It gets all
    /// of it or none.
    ///
    /// # Errors
    /// [`ModelError::CacheFull`]; [`EngineError::PoolFull`] and [`EngineError::CacheMemory`] with the bytes needed and to be
    /// had.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        let end = self.end(tokens)?;
        self.settle();
        let new_pages = pages(end).saturating_sub(self.slots.len());
        let copied = self.shared_page();
        // Pages that the pass packs, or a later one. Those that are not there yet are counted, not listed: more may be asked
        // for than can be had.
        let packed_end = self.pool.forms().packed_end(pages(end));
        let there = self.retired..packed_end.min(self.slots.len());
        let later = self.retired.max(self.slots.len()).min(packed_end)..packed_end;
        let unpacked: Vec<usize> = there
            .filter(|&page| self.slots[page].packed.is_none())
            .collect();
        if new_pages == 0 && copied.is_none() && unpacked.is_empty() {
            return Ok(());
        }
        let mut ledger = self.pool.lock();
        let layers = self.pool.layout().layers;
        // Another sequence may have packed a page that this one saw dense so far.
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for page in unpacked {
            match self.path.get(page).and_then(|&id| ledger.share(id)) {
                Some(block) => known.push((page, Packed::known(block, layers))),
                None => unknown.push(page),
            }
        }
        let dense = new_pages + usize::from(copied.is_some());
        let packed = unknown.len() + later.len();
        let mut taken = match self.pool.take(&mut ledger, dense, packed) {
            Ok(taken) => taken,
            Err(error) => {
                let held = ledger.in_use;
                known
                    .into_iter()
                    .for_each(|(_, packed)| packed.release(&mut ledger));
                // Pages that were only cached would have been in use too.
                return Err(error.with_bytes(held - ledger.in_use));
            }
        };
        if let Some(page) = copied
            && let Some(block) = taken.dense.pop()
        {
            let slot = &mut self.slots[page];
            let old = slot.dense.replace(block);
            if let Some(old) = old {
                slot.dense_mut().copy_from_slice(&old.content);
                ledger.release(old);
            }
        }
        self.slots.extend(taken.dense.into_iter().map(Slot::dense));
        let memory = taken
            .packed
            .into_iter()
            .map(|block| Packed::memory(block, layers));
        let unknown = unknown.into_iter().chain(later).zip(memory);
        for (page, packed) in unknown.chain(known) {
            self.slots[page].packed = Some(packed);
        }
        Ok(())
    }

    /// Says what the next tokens are, those after [`PagedCache::tokens`]. Full pages of tokens that are known go into the
    /// prefix cache.
    ///
    /// # Panics
    /// If that is more tokens than it holds.
    pub fn commit(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        assert!(
            self.ids.len() <= self.len,
            "{} tokens named of {}",
            self.ids.len(),
            self.len
        );
        if self.ids.len() / PAGE_TOKENS > self.path.len() {
            self.register();
        }
        self.settle();
    }

    /// Has the tree know the full pages whose tokens have been named since.
    fn register(&mut self) {
        let mut ledger = self.pool.lock();
        let named = self.ids.chunks_exact(PAGE_TOKENS).zip(&mut self.slots);
        for (ids, slot) in named.skip(self.path.len()) {
            let parent = self.path.last().copied().unwrap_or(ROOT);
            let id = ledger
                .tree
                .child_or_new(parent, &page_key(parent, ids, &self.salt));
            slot.register(&mut ledger, id);
            self.path.push(id);
        }
        ledger.tree.touch(&self.path);
    }

    /// Forgets the tokens from position `len` on and gives back the pages that held only them. Says how many tokens are left:
    /// `len`, unless pages that the next token has to see dense are there only packed. It is exact for the last
    /// [`UNDO_TOKENS`] that were added, and where nothing is packed; else only the tokens of the sinks are left.
    pub fn truncate(&mut self, len: usize) -> usize {
        let Forms { sinks, window, .. } = self.pool.forms();
        let len = self.len.min(len);
        let sees_retired =
            self.retired > sinks && len / PAGE_TOKENS < self.retired.saturating_add(window);
        if sees_retired {
            self.len = len.min(sinks * PAGE_TOKENS);
            self.retired = sinks;
        } else {
            self.len = len;
        }
        self.ids.truncate(self.len);
        self.path.truncate(self.len / PAGE_TOKENS);
        let mut ledger = self.pool.lock();
        for mut slot in self.slots.drain(pages(self.len)..) {
            slot.release_dense(&mut ledger);
            slot.release_packed(&mut ledger);
        }
        // The last page is no longer what was packed of it.
        if let Some(slot) = self.slots.get_mut(self.len / PAGE_TOKENS) {
            slot.release_packed(&mut ledger);
        }
        self.len
    }

    /// A second sequence that begins with all tokens of this one. Their pages are shared; the last one, if there is room in
    /// it, until one of them writes to it.
    pub fn fork(&self) -> Self {
        // The lock is for the references, which the ledger counts.
        let _ledger = self.pool.lock();
        let whole = self.len / PAGE_TOKENS;
        let share = |(page, slot): (usize, &Slot)| {
            if page < whole {
                return slot.share();
            }
            Slot {
                dense: slot.dense.clone(),
                packed: None,
            }
        };
        let slots = self.slots[..pages(self.len)].iter().enumerate();
        Self {
            pool: self.pool.clone(),
            slots: slots.map(share).collect(),
            len: self.len,
            limit: self.limit,
            ids: self.ids.clone(),
            salt: Arc::clone(&self.salt),
            path: self.path.clone(),
            retired: self.retired,
        }
    }

    /// Makes an empty sequence begin with what the prefix cache has of the first `whole` pages of `tokens`.
    fn find(&mut self, tokens: &[u32], whole: usize) {
        let (forms, layers) = (self.pool.forms(), self.pool.layout().layers);
        let mut ledger = self.pool.lock();
        let (mut path, mut has) = (Vec::new(), Vec::new());
        for ids in tokens.chunks_exact(PAGE_TOKENS).take(whole) {
            let parent = path.last().copied().unwrap_or(ROOT);
            let Some(id) = ledger
                .tree
                .child(parent, &page_key(parent, ids, &self.salt))
            else {
                break;
            };
            let node = ledger.tree.node(id);
            has.push((node.dense.is_some(), node.packed.is_some()));
            path.push(id);
        }
        // As many pages as there are in the forms that the next token sees.
        let usable = |&count: &usize| {
            let mut pages = has[..count].iter().enumerate();
            pages.all(|(page, &(dense, packed))| {
                if forms.packed(page, count) {
                    packed
                } else {
                    dense
                }
            })
        };
        let count = (0..=path.len()).rev().find(usable).unwrap_or(0);
        path.truncate(count);
        for (page, &id) in path.iter().enumerate() {
            self.slots.push(if forms.packed(page, count) {
                Slot {
                    dense: None,
                    packed: ledger.share(id).map(|block| Packed::known(block, layers)),
                }
            } else {
                Slot {
                    dense: ledger.share(id),
                    packed: None,
                }
            });
        }
        ledger.tree.touch(&path);
        self.path = path;
        self.len = count * PAGE_TOKENS;
        self.ids = tokens[..self.len].to_vec();
        self.retired = forms.packed_end(count).max(forms.sinks);
    }

    /// Position after `tokens` more tokens, if that many fit.
    fn end(&self, tokens: usize) -> Result<usize, ModelError> {
        let needed = self.len.saturating_add(tokens);
        if needed > self.limit {
            return Err(ModelError::CacheFull {
                needed,
                capacity: self.limit,
            });
        }
        Ok(needed)
    }

    /// The page that the next token goes to, if it is there and others hold it as well.
    fn shared_page(&self) -> Option<usize> {
        let page = self.len / PAGE_TOKENS;
        let slot = self.slots.get(page)?;
        slot.is_shared().then_some(page)
    }

    /// Packs what a pass that ends before position `end` sees packed, and a bit of what later ones will.
    fn pack(&mut self, rt: &Runtime, layer: usize, end: usize) {
        let (forms, layout) = (self.pool.forms(), self.pool.layout());
        let (query_page, slot) = ((end - 1) / PAGE_TOKENS, (end - 1) % PAGE_TOKENS);
        let begun = slot >= PACKING_SLOT + layer % PACKING_STEPS;
        let packed_end = forms.packed_end(query_page + usize::from(begun));
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for slot in self.slots[..packed_end].iter_mut().skip(self.retired) {
            if slot
                .packed
                .as_ref()
                .is_none_or(|packed| !packed.layers()[layer])
            {
                jobs.extend(slot.jobs(layout, layer));
            }
        }
        share_out(rt, &mut jobs, &|job| job.run(rt, layout));
    }

    /// Has the tree know the pages that have been packed, and lets go of dense pages that are seen packed from now on. It is
    /// not done in the pass that makes it possible, so that the caller can name the tokens first: the tree knows such pages
    /// in both forms then.
    fn settle(&mut self) {
        // Tokens may be taken back, and a page before its packed form is seen then.
        let seen_from = self.len.saturating_sub(UNDO_TOKENS) / PAGE_TOKENS;
        let retired_end = self.pool.forms().packed_end(seen_from);
        let news = |page: usize| self.slots.get(page).is_some_and(Slot::is_news);
        if retired_end <= self.retired && !(self.retired..self.path.len()).any(news) {
            return;
        }
        let mut ledger = self.pool.lock();
        for (slot, &id) in self.slots.iter_mut().zip(&self.path).skip(self.retired) {
            if slot.is_news() {
                slot.register(&mut ledger, id);
            }
        }
        while self.retired < retired_end {
            self.slots[self.retired].release_dense(&mut ledger);
            self.retired += 1;
        }
    }

    /// An error of [`PagedCache::reserve`] in the words of a forward pass.
    fn model_error(&self, error: EngineError, tokens: usize) -> ModelError {
        match error {
            EngineError::Model(error) => error,
            EngineError::CacheMemory {
                needed_bytes,
                available_bytes,
            } => ModelError::NotEnoughMemory {
                needed_bytes,
                available_bytes,
            },
            _ => ModelError::CacheFull {
                needed: self.len + tokens,
                capacity: self.slots.len() * PAGE_TOKENS,
            },
        }
    }
}

impl Drop for PagedCache {
    fn drop(&mut self) {
        // What was in use last is the most likely to be wanted again.
        self.pool.lock().tree.touch(&self.path);
        self.truncate(0);
    }
}

impl KvCache for PagedCache {
    fn len(&self) -> usize {
        self.len
    }

    fn append(
        &mut self,
        rt: &Runtime,
        layer: usize,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), ModelError> {
        let layout = self.pool.layout();
        layout.check(q, k, v)?;
        let (start, rows) = (self.len, k.rows());
        if rows == 0 {
            return Ok(());
        }
        self.reserve(rows).map_err(|e| self.model_error(e, rows))?;
        let written = &mut self.slots[start / PAGE_TOKENS..pages(start + rows)];
        let blocks = written.iter_mut().map(|slot| {
            // A pass that failed may have packed what it wrote.
            if let Some(packed) = &mut slot.packed {
                packed.forget(layer);
            }
            &mut slot.dense_mut()[layout.layer(layer)]
        });
        write::write(rt, layout, New { start, q, k, v }, blocks);
        self.pack(rt, layer, start + rows);
        Ok(())
    }

    fn pages(&self, layer: usize) -> Box<dyn KvPages + '_> {
        Box::new(LayerPages {
            sequence: self,
            forms: self.pool.forms(),
            first_pair: layer * self.pool.layout().kv_heads,
        })
    }

    fn packed(&self, query_page: usize) -> (Range<usize>, usize) {
        let (forms, kv_heads) = (self.pool.forms(), self.pool.layout().kv_heads);
        let pair_bytes = forms.packing.map_or(0, |packing| packing.pair_bytes());
        let pages = forms.sinks..forms.packed_end(query_page);
        (pages, kv_heads * pair_bytes)
    }

    fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}

/// One layer of a sequence.
struct LayerPages<'a> {
    sequence: &'a PagedCache,
    forms: Forms,
    first_pair: usize,
}

/// A page as a query sees it.
enum Seen<'a> {
    Dense(Pair<'a>),
    Packed(&'a PackedPages),
}

impl LayerPages<'_> {
    fn seen(&self, pair: usize, page: usize, query_page: usize) -> Seen<'_> {
        let slot = &self.sequence.slots[page];
        match (
            &slot.dense,
            &slot.packed,
            self.forms.packed(page, query_page),
        ) {
            (_, Some(packed), true) => Seen::Packed(&packed.block().content),
            (Some(dense), _, false) => {
                Seen::Dense(self.sequence.pool.layout().pair(&dense.content, pair))
            }
            (_, _, packed) => {
                panic!(
                    "page {page} is seen from page {query_page} and not there (packed: {packed})"
                )
            }
        }
    }
}

impl KvPages for LayerPages<'_> {
    fn precision(&self) -> PageDtype {
        let packing = self.forms.packing;
        packing.map_or(PageDtype::Bf16, |packing| packing.precision)
    }

    fn key(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        let pair = self.first_pair + kv_head;
        match self.seen(pair, page, query_page) {
            Seen::Dense(dense) => Page::Dense(dense.key),
            Seen::Packed(pages) => pages.key(pair),
        }
    }

    fn value(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        let pair = self.first_pair + kv_head;
        match self.seen(pair, page, query_page) {
            Seen::Dense(dense) => Page::Dense(dense.value),
            Seen::Packed(pages) => pages.value(pair),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "checked_tests.rs"]
mod checked_tests;
