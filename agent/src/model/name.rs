// SPDX-License-Identifier: Apache-2.0
//! Names of objects: one copy, however many indexes have it.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    hash::Hash,
    ops::Deref,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is cheap to copy.
#[derive(Clone, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Arc<str>);

/// Values of which most are equal to others, each once.
pub(crate) struct Known<T>(Mutex<All<T>>);

struct All<T> {
    values: HashSet<T>,
    /// With so many it is time to look for those that nobody has any more.
    full: usize,
}

/// Values that are kept without a look at whether somebody has them.
const FEW: usize = 1000;

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::new(All { values: HashSet::new(), full: FEW }))
    }
}

impl<T: Clone + Eq + Hash> Known<T> {
    /// The one copy of `value`, made by `make` if there is none. `is_used` says whether anybody else has a copy.
    pub(crate) fn one<Q>(&self, value: &Q, make: impl FnOnce() -> T, is_used: impl Fn(&T) -> bool) -> T
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let All { values, full } = &mut *all;
        if let Some(known) = values.get(value) {
            return known.clone();
        }
        if values.len() >= *full {
            values.retain(is_used);
            *full = (2 * values.len()).max(FEW);
        }
        let value = make();
        values.insert(value.clone());
        value
    }
}

impl Name {
    /// The one copy of a text that many objects have: a namespace, a node, a port's name.
    #[must_use]
    pub fn shared(text: &str) -> Self {
        static KNOWN: LazyLock<Known<Name>> = LazyLock::new(Known::default);
        KNOWN.one(text, || Self::from(text), |name| Arc::strong_count(&name.0) > 1)
    }

    /// Deserialises a text that many objects have.
    ///
    /// # Errors
    /// It is no text.
    pub(crate) fn deserialize_shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(|text| Self::shared(&text)))
    }

    /// It.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl PartialEq<String> for Name {
    fn eq(&self, other: &String) -> bool {
        &*self.0 == other.as_str()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.into()))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_names_are_one_and_unused_ones_go() {
        let (one, other) = (Name::shared("a-namespace"), Name::shared("a-namespace"));
        assert!(Arc::ptr_eq(&one.0, &other.0));
        let known = Known::<Name>::default();
        for number in 0..10_000 {
            known.one(
                &*format!("n{number}"),
                || Name::from(&*format!("n{number}")),
                |name| Arc::strong_count(&name.0) > 1,
            );
        }
        assert!(known.0.lock().unwrap().values.len() <= FEW, "nobody has them");
    }
}
