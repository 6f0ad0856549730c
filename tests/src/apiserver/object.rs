// SPDX-License-Identifier: Apache-2.0

//! Objects: what selectors read of them, and where they come from.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Namespace and name; the namespace is empty where the kind has none.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What selectors read of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    /// Its name.
    pub key: Key,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.clusterIP`.
    pub cluster_ip: Option<String>,
}

impl Head {
    /// Of a whole object.
    ///
    /// # Errors
    /// It has no name.
    pub fn of(object: &Value) -> Result<Self> {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().context("the object has no name")?;
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let labels = metadata["labels"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            key: Key::new(namespace, name),
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            node: object["spec"]["nodeName"].as_str().map(str::to_owned),
            cluster_ip: object["spec"]["clusterIP"].as_str().map(str::to_owned),
        })
    }
}

/// Objects of one kind that are written when they are asked for, so that nobody holds them.
pub trait Generate: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// What selectors read of object `index`.
    fn head(&self, index: usize) -> Head;

    /// Object `index` as JSON on one line.
    fn text(&self, index: usize) -> String;

    /// The index of an object.
    fn find(&self, key: &Key) -> Option<usize>;
}
