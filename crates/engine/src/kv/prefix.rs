//! The tree of full pages whose tokens are known.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::block::{DenseBlock, PackedBlock};

/// A page in the tree: the one of these tokens after those of its ancestors. Ids are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(u64);

/// Above all first pages; holds no page itself.
pub(super) const ROOT: NodeId = NodeId(0);

pub(super) struct Node {
    parent: NodeId,
    ids: Box<[u32]>,
    children: HashMap<Box<[u32]>, NodeId>,
    pub dense: Option<Arc<DenseBlock>>,
    pub packed: Option<Arc<PackedBlock>>,
    /// When it was last of use to somebody, as [`Tree::touch`] counts.
    used: u64,
}

impl Node {
    fn new(parent: NodeId, ids: &[u32]) -> Self {
        Self {
            parent,
            ids: ids.into(),
            children: HashMap::new(),
            dense: None,
            packed: None,
            used: 0,
        }
    }

    /// Whether sequences hold the page dense, and packed.
    fn in_use(&self) -> (bool, bool) {
        (
            self.dense.as_ref().is_some_and(|block| block.in_use()),
            self.packed.as_ref().is_some_and(|block| block.in_use()),
        )
    }
}

/// What [`Tree::evict`] took out.
#[derive(Default)]
pub(super) struct Evicted {
    pub dense: Option<Arc<DenseBlock>>,
    pub packed: Option<Arc<PackedBlock>>,
}

/// Whoever holds a page of a node, in whatever form, holds pages of all its ancestors. So what nobody holds can go from the
/// leaves up.
pub(super) struct Tree {
    nodes: BTreeMap<NodeId, Node>,
    next: u64,
    clock: u64,
}

impl Tree {
    pub fn new() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::new(ROOT, &[]))]),
            next: 1,
            clock: 0,
        }
    }

    pub fn child(&self, parent: NodeId, ids: &[u32]) -> Option<NodeId> {
        self.nodes[&parent].children.get(ids).copied()
    }

    /// The page that is known by `ids` after `parent`, which is made if there is none.
    pub fn child_or_new(&mut self, parent: NodeId, ids: &[u32]) -> NodeId {
        if let Some(id) = self.child(parent, ids) {
            return id;
        }
        let id = NodeId(self.next);
        self.next += 1;
        self.nodes.insert(id, Node::new(parent, ids));
        self.node(parent).children.insert(ids.into(), id);
        id
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .get_mut(&id)
            .expect("a node stays while a sequence holds its page")
    }

    /// Says that these pages are of use now.
    pub fn touch(&mut self, path: &[NodeId]) {
        self.clock += 1;
        for &id in path {
            let clock = self.clock;
            self.node(id).used = clock;
        }
    }

    /// Takes out what is least missed of that which no sequence holds: dense pages that are there packed as well, then leaves,
    /// each the least recently used first; then what else can go.
    pub fn evict(&mut self) -> Evicted {
        let twice = |node: &Node| node.dense.is_some() && node.packed.is_some();
        if let Some(id) = self.oldest(|node| twice(node) && !node.in_use().0) {
            return Evicted {
                dense: self.node(id).dense.take(),
                packed: None,
            };
        }
        if let Some(id) =
            self.oldest(|node| node.children.is_empty() && node.in_use() == (false, false))
            && let Some(node) = self.nodes.remove(&id)
        {
            self.node(node.parent).children.remove(&node.ids);
            return Evicted {
                dense: node.dense,
                packed: node.packed,
            };
        }
        match self.oldest(|node| node.packed.is_some() && node.in_use() == (true, false)) {
            Some(id) => Evicted {
                dense: None,
                packed: self.node(id).packed.take(),
            },
            None => Evicted::default(),
        }
    }

    /// The least recently used page of those that `which` says.
    fn oldest(&self, which: impl Fn(&Node) -> bool) -> Option<NodeId> {
        let pages = self.nodes.iter().filter(|(id, _)| **id != ROOT);
        pages
            .filter(|(_, node)| which(node))
            .min_by_key(|(id, node)| (node.used, **id))
            .map(|(id, _)| *id)
    }
}
