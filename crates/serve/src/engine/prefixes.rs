//! Keys and values of prompts' beginnings, kept for other requests: a tree whose edges are whole pages of tokens. A root
//! belongs to one generation of one adapter, so nothing that an adapter computed is ever seen by another one.

use std::collections::HashMap;
use std::sync::Arc;

use tunesmith_models::Page;

/// What leads from a node to the next: the tokens of a page; at the root whose they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Edge {
    /// A generation, and what else separates requests. Its pages hold virtual tokens, where there are any.
    Root(String, String),
    Tokens(u64, Box<[u32]>),
}

struct Node {
    id: u64,
    pages: Vec<Arc<Page>>,
    parent: Option<Edge>,
    children: usize,
    used: u64,
}

/// The tree.
#[derive(Default)]
pub(super) struct Prefixes {
    nodes: HashMap<Edge, Node>,
    clock: u64,
    ids: u64,
    pages: usize,
}

impl Prefixes {
    /// Pages that are kept.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// The node that an edge leads to, with its pages.
    pub(super) fn find(&mut self, edge: &Edge) -> Option<(u64, &[Arc<Page>])> {
        self.clock += 1;
        let node = self.nodes.get_mut(edge)?;
        node.used = self.clock;
        Some((node.id, &node.pages))
    }

    /// Keeps pages behind an edge and returns the node's number. What is there already stays.
    pub(super) fn insert(&mut self, edge: &Edge, parent: Option<&Edge>, pages: &[Arc<Page>]) -> u64 {
        self.clock += 1;
        if let Some(node) = self.nodes.get_mut(edge) {
            node.used = self.clock;
            return node.id;
        }
        self.ids += 1;
        self.pages += pages.len();
        if let Some(above) = parent.and_then(|parent| self.nodes.get_mut(parent)) {
            above.children += 1;
        }
        let (parent, pages) = (parent.cloned(), pages.to_vec());
        self.nodes.insert(edge.clone(), Node { id: self.ids, pages, parent, children: 0, used: self.clock });
        self.ids
    }

    /// Gives up the leaf that was used longest ago and that no sequence uses; false if there is none.
    pub(super) fn evict(&mut self) -> bool {
        let is_free = |node: &Node| node.children == 0 && node.pages.iter().all(|page| Arc::strong_count(page) == 1);
        #[expect(clippy::iter_over_hash_type, reason = "the least of distinct numbers does not depend on the order")]
        let oldest = {
            let mut oldest: Option<(&Edge, u64)> = None;
            for (edge, node) in &self.nodes {
                if is_free(node) && oldest.is_none_or(|(_, used)| node.used < used) {
                    oldest = Some((edge, node.used));
                }
            }
            oldest.map(|(edge, _)| edge.clone())
        };
        let Some(node) = oldest.and_then(|edge| self.nodes.remove(&edge)) else { return false };
        self.pages -= node.pages.len();
        if let Some(above) = node.parent.and_then(|parent| self.nodes.get_mut(&parent)) {
            above.children -= 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_go_first_and_the_longest_unused_of_them() {
        let mut prefixes = Prefixes::default();
        let root = Edge::Root("g".into(), String::new());
        let top = prefixes.insert(&root, None, &[]);
        let edge = |parent: u64, token: u32| Edge::Tokens(parent, vec![token; 3].into());
        let first = prefixes.insert(&edge(top, 1), Some(&root), &[]);
        prefixes.insert(&edge(first, 2), Some(&edge(top, 1)), &[]);
        prefixes.insert(&edge(top, 3), Some(&root), &[]);
        assert!(prefixes.find(&edge(first, 2)).is_some());
        assert!(prefixes.find(&Edge::Root("other".into(), String::new())).is_none());
        assert!(prefixes.evict());
        assert!(prefixes.find(&edge(top, 3)).is_none(), "the leaf that was used longest ago has left");
        assert!(prefixes.evict());
        assert!(prefixes.find(&edge(first, 2)).is_none());
        assert!(prefixes.find(&edge(top, 1)).is_some(), "what led to it is still there");
        assert!(prefixes.evict() && prefixes.evict() && !prefixes.evict());
        assert_eq!(prefixes.pages(), 0);
    }
}
