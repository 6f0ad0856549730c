// SPDX-License-Identifier: Apache-2.0
//! Labels of an object. A tree takes half a kilobyte for a handful of them.

use std::{collections::BTreeMap, ops::Index};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Name;

/// Keys and values, in the order of keys.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Labels(Vec<(Name, Name)>);

impl Labels {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.place(key).ok()?;
        Some(&self.0[place].1)
    }

    /// Whether a key has a value.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.place(key).is_ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and values, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Gives a key a value.
    pub fn insert(&mut self, key: &str, value: &str) {
        match self.place(key) {
            Ok(place) => self.0[place].1 = value.into(),
            Err(place) => self.0.insert(place, (Name::shared(key), value.into())),
        }
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(key))
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        let mut labels = Self::new();
        all.into_iter().for_each(|(key, value)| labels.insert(&key, &value));
        labels.0.shrink_to_fit();
        labels
    }
}

impl Index<&str> for Labels {
    type Output = str;

    fn index(&self, key: &str) -> &str {
        self.get(key).unwrap_or_else(|| panic!("no label '{key}'"))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<String, String>::deserialize(deserializer)?.into_iter().collect())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_map() {
        let labels: Labels = serde_json::from_str(r#"{"b": "2", "a": "1", "": ""}"#).unwrap();
        assert_eq!(
            (labels.get("a"), labels.get("b"), labels.get(""), labels.get("c")),
            (Some("1"), Some("2"), Some(""), None)
        );
        assert_eq!(serde_json::to_string(&labels).unwrap(), r#"{"":"","a":"1","b":"2"}"#);
        let mut more = labels.clone();
        more.insert("c", "3");
        more.insert("a", "4");
        assert_eq!((&more["a"], &more["c"], more.contains_key("b")), ("4", "3", true));
        assert_ne!(labels, more);
        assert!(Labels::new().is_empty() && !more.is_empty());
    }
}
