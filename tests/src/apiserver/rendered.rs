// SPDX-License-Identifier: Apache-2.0

//! Pages of generated objects, each as it was written last. An API server keeps objects that it has encoded too; and it encodes
//! on its own machine, while this one shares its processors with the agents that are measured.

use std::{collections::BTreeMap, sync::Arc};

use super::selector::Selection;

/// Bytes that are kept.
const MOST: usize = 1 << 30;

/// See the module.
#[derive(Default)]
pub(super) struct Rendered {
    pages: BTreeMap<PageKey, RenderedPage>,
    bytes: usize,
}

/// Which page: of what, from which object on, how many.
type PageKey = (Selection, usize, usize);

/// A page.
pub(super) struct RenderedPage {
    /// How many generated objects were hidden then; one that is hidden stays so.
    pub(super) hidden: usize,
    pub(super) items: Vec<Arc<str>>,
    /// The object that the next page begins with.
    pub(super) next: Option<usize>,
}

impl Rendered {
    /// A page, if it is as it would be written now.
    pub(super) fn get(&self, key: &PageKey, hidden: usize) -> Option<&RenderedPage> {
        self.pages.get(key).filter(|page| page.hidden == hidden)
    }

    pub(super) fn keep(&mut self, key: PageKey, page: RenderedPage) {
        let size = |page: &RenderedPage| page.items.iter().map(|item| item.len()).sum::<usize>();
        self.bytes -= self.pages.remove(&key).as_ref().map_or(0, size);
        let bytes = self.bytes + size(&page);
        if bytes <= MOST {
            self.bytes = bytes;
            self.pages.insert(key, page);
        }
    }
}
