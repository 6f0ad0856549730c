// SPDX-License-Identifier: Apache-2.0
//! Reading of single fields: a wrong one is named, with what it should be.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::CniError;

/// The object on stdin and what is wrong in it.
pub(super) struct Fields {
    object: Value,
    /// Problems found so far.
    pub(super) problems: Vec<CniError>,
}

impl Fields {
    pub(super) fn new(object: Map<String, Value>) -> Self {
        Self { object: Value::Object(object), problems: Vec::new() }
    }

    pub(super) fn refuse_unknown(&mut self, known: impl Fn(&str) -> bool) {
        let keys = self.object.as_object().into_iter().flat_map(Map::keys);
        let unknown = keys.filter(|key| !known(key)).map(|key| {
            CniError::config(format!("unknown field '{key}' in the network configuration; remove or correct it"))
        });
        self.problems.extend(unknown);
    }

    /// Whether a field is there, null or not.
    pub(super) fn has(&self, field: &str) -> bool {
        self.object.get(field).is_some()
    }

    /// Reads a field at the top level; none where it is absent, null or wrong.
    pub(super) fn parsed<T: DeserializeOwned>(&mut self, field: &str, expected: &str) -> Option<T> {
        let value = self.object.get(field)?.clone();
        self.convert(field, value, expected)
    }

    /// Reads the field at JSON pointer `pointer`, which people know as `field`.
    pub(super) fn nested<T: DeserializeOwned>(&mut self, pointer: &str, field: &str, expected: &str) -> Option<T> {
        let value = self.object.pointer(pointer)?.clone();
        self.convert(field, value, expected)
    }

    pub(super) fn number<T>(&mut self, field: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<u64>,
    {
        let value = self.object.get(field).filter(|value| !value.is_null())?.clone();
        let number = value.as_u64().and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(field, &value, &format!("a number from {} to {}", range.start(), range.end()));
        }
        number
    }

    /// Reads an absolute path.
    pub(super) fn path(&mut self, field: &str) -> Option<PathBuf> {
        let text: String = self.parsed(field, "an absolute path")?;
        if !Path::new(&text).is_absolute() {
            self.wrong(field, &text.into(), "an absolute path");
            return None;
        }
        Some(text.into())
    }

    /// Notes that `field` has `value` and should have `expected`.
    pub(super) fn wrong(&mut self, field: &str, value: &Value, expected: &str) {
        self.problems.push(CniError::config(format!("field '{field}' is {value}; set it to {expected}")));
    }

    fn convert<T: DeserializeOwned>(&mut self, field: &str, value: Value, expected: &str) -> Option<T> {
        if value.is_null() {
            return None;
        }
        match serde_json::from_value(value.clone()) {
            Ok(parsed) => Some(parsed),
            Err(_) => {
                self.wrong(field, &value, expected);
                None
            }
        }
    }
}
