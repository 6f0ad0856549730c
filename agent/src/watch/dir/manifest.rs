// SPDX-License-Identifier: Apache-2.0
//! Manifests: YAML text to objects of the API, with the line of whatever is wrong.

use serde::{Serialize, de::DeserializeOwned};
use serde_yaml::Value;

use crate::{
    model::ObjectKey,
    watch::dir::{
        object::{Name, Object},
        validate::{self, Invalid},
    },
};

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    /// Its valid objects.
    pub(crate) objects: Vec<Object>,
    /// Objects that were refused: which (where that much could be read), and why with `file:line`.
    pub(crate) refused: Vec<(Option<Name>, String)>,
    /// The text is not YAML: nothing of it counts.
    pub(crate) broken: Option<String>,
}

/// Reads all documents of a file.
pub(crate) fn read(file: &str, text: &str) -> Manifest {
    let mut manifest = Manifest::default();
    for document in documents(text) {
        match document.parse() {
            Ok(None) => {}
            Ok(Some(value)) => match document.object(&value) {
                Ok(object) => manifest.objects.push(object),
                Err(refusal) => {
                    let Refusal { name, line, why } = refusal;
                    let object = name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                    manifest.refused.push((name, format!("{file}:{line}: {object}{why}")));
                }
            },
            Err((line, why)) => {
                manifest.broken = Some(format!("{file}:{line}: {why}"));
                break;
            }
        }
    }
    manifest
}

/// One document of a file, and the number of lines before it.
struct Document<'a> {
    text: &'a str,
    lines_before: usize,
}

/// Splits at `---` at the beginning of a line, which ends whatever was before (YAML 1.2.2, 9.1.4).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (line, content) in text.split_inclusive('\n').enumerate() {
        let marker =
            content.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && offset > start {
            documents.push(Document { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (offset, line);
        }
        offset += content.len();
    }
    documents.push(Document { text: &text[start..], lines_before: start_line });
    documents
}

struct Refusal {
    name: Option<Name>,
    line: usize,
    why: String,
}

impl Document<'_> {
    /// The document as a tree; none where it is empty. Duplicate keys are errors.
    fn parse(&self) -> Result<Option<Value>, (usize, String)> {
        match serde_yaml::from_str::<Value>(self.text) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(error) => Err((self.line_of(&error), message(&error))),
        }
    }

    fn object(&self, value: &Value) -> Result<Object, Refusal> {
        let text = |field: &str| value.get(field).and_then(Value::as_str);
        let (version, kind) = (text("apiVersion"), text("kind"));
        match (version, kind) {
            (Some("v1"), Some("Pod")) => self.typed(value, "Pod", Object::Pod),
            (Some("v1"), Some("Namespace")) => self.typed(value, "Namespace", Object::Namespace),
            (Some("v1"), Some("Node")) => self.typed(value, "Node", Object::Node),
            (Some("v1"), Some("Service")) => self.typed(value, "Service", Object::Service),
            (Some("discovery.k8s.io/v1"), Some("EndpointSlice")) => self.typed(value, "EndpointSlice", Object::Slice),
            (Some("networking.k8s.io/v1"), Some("NetworkPolicy")) => self.typed(value, "NetworkPolicy", Object::Policy),
            (Some("networking.k8s.io/v1"), Some("ServiceCIDR")) => {
                self.typed(value, "ServiceCIDR", Object::ServiceCidr)
            }
            (Some(version), Some(kind)) => Err(self.refusal(
                None,
                "kind",
                format!(
                    "kind: {kind} of {version} is not read from a folder; use v1 Pod, Namespace, Node or Service, \
                     discovery.k8s.io/v1 EndpointSlice, or networking.k8s.io/v1 NetworkPolicy or ServiceCIDR"
                ),
            )),
            (None, _) => Err(self.refusal(None, "", "apiVersion: missing".to_owned())),
            (_, None) => Err(self.refusal(None, "", "kind: missing".to_owned())),
        }
    }

    /// Reads the document as an object: typed, without unknown fields (as `kubectl` has it validated), and valid.
    fn typed<K: DeserializeOwned + Serialize>(
        &self,
        value: &Value,
        kind: &'static str,
        wrap: fn(K) -> Object,
    ) -> Result<Object, Refusal> {
        let name = Some(Name { kind, key: raw_key(value, kind) });
        let object: K = match serde_yaml::from_str(self.text) {
            Ok(object) => object,
            Err(error) => return Err(Refusal { name, line: self.line_of(&error), why: message(&error) }),
        };
        let known = serde_yaml::to_value(&object).unwrap_or_default();
        if let Some(path) = unknown_field(value, &known, "") {
            return Err(self.refusal(name, &path, format!("{path}: unknown field")));
        }
        let mut object = wrap(object);
        match validate::complete(&mut object) {
            Ok(()) => Ok(object),
            Err(Invalid { field, why }) => Err(self.refusal(name, &field, format!("{field}: {why}"))),
        }
    }

    fn refusal(&self, name: Option<Name>, field: &str, why: String) -> Refusal {
        Refusal { name, line: self.find_line(field), why }
    }

    fn line_of(&self, error: &serde_yaml::Error) -> usize {
        self.lines_before + error.location().map_or(1, |location| location.line())
    }

    /// The line of a field by its path such as `spec.ports[0].name`: follows the keys downwards, as near as it gets.
    fn find_line(&self, path: &str) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut found = lines.iter().position(|line| !is_blank(line)).unwrap_or_default();
        for part in path.split('.') {
            let (key, index) = part.split_once('[').unwrap_or((part, "0]"));
            let of_key =
                |line: &str| line.trim_start().trim_start_matches("- ").trim_start().starts_with(&format!("{key}:"));
            let Some(at) = (found..lines.len()).find(|at| of_key(lines[*at])) else { break };
            found = at;
            let index: usize = index.trim_end_matches(']').parse().unwrap_or_default();
            if part.contains('[') {
                found = item_line(&lines, at, index).unwrap_or(at);
            }
        }
        self.lines_before + found + 1
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

/// The line of the `index`th item of the sequence under the key at line `at`.
fn item_line(lines: &[&str], at: usize, index: usize) -> Option<usize> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    // A sequence in brackets stands on the key's own line.
    let first = (at + 1..lines.len()).find(|next| !is_blank(lines[*next]))?;
    if !lines[first].trim_start().starts_with('-') {
        return None;
    }
    let depth = indent(lines[first]);
    let items =
        (first..lines.len()).filter(|next| indent(lines[*next]) == depth && lines[*next].trim_start().starts_with('-'));
    items.into_iter().nth(index)
}

/// The parser's words without its own idea of the place.
fn message(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    match text.find(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn raw_key(value: &Value, kind: &str) -> ObjectKey {
    let field = |name: &str| value.get("metadata").and_then(|metadata| metadata.get(name)).and_then(Value::as_str);
    let namespace = if validate::is_namespaced(kind) { field("namespace").unwrap_or("default") } else { "" };
    ObjectKey::new(namespace, field("name").unwrap_or_default())
}

/// The path of a field that is given but did not come through.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Mapping(given), Value::Mapping(known)) => given.iter().find_map(|(key, value)| {
            let name = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            match known.get(key) {
                Some(known) => unknown_field(value, known, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Sequence(given), Value::Sequence(known)) => {
            let mut pairs = given.iter().zip(known).enumerate();
            pairs.find_map(|(index, (given, known))| unknown_field(given, known, &format!("{path}[{index}]")))
        }
        _ => None,
    }
}
