// SPDX-License-Identifier: Apache-2.0

//! Label and field selectors, as they stand in a query.

use super::object::Head;

/// What a list or a watch is of.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

/// What is asked of one label or field.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Requirement {
    key: String,
    /// `None`: any value.
    values: Option<Vec<String>>,
    negated: bool,
}

impl Requirement {
    /// An absent value is in no set.
    fn allows(&self, value: Option<&str>) -> bool {
        let is_in = match (&self.values, value) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(values), Some(value)) => values.iter().any(|known| known == value),
        };
        is_in != self.negated
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let one = |key: &str, value: &str, negated| Self {
            key: key.trim().to_owned(),
            values: Some(vec![value.trim().to_owned()]),
            negated,
        };
        if let Some((key, rest)) = text.split_once(" notin ").or_else(|| text.split_once(" in ")) {
            let inside = rest.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
            let inside = inside.ok_or_else(|| format!("'{text}' has no set in brackets"))?;
            let values = inside.split(',').map(|value| value.trim().to_owned()).collect();
            return Ok(Self { key: key.trim().to_owned(), values: Some(values), negated: text.contains(" notin ") });
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(one(key, value, true));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Ok(one(key, value, false));
        }
        let key = text.trim_start_matches('!').trim();
        let valid = !key.is_empty() && !key.contains([' ', '(', ')', '<', '>']);
        if !valid {
            return Err(format!("'{text}' is no requirement"));
        }
        Ok(Self { key: key.to_owned(), values: None, negated: text.starts_with('!') })
    }

    /// Requirements are separated by commas, those of a set's brackets not counted.
    fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let mut depth = 0;
        let parts = text.split(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        });
        parts.filter(|part| !part.trim().is_empty()).map(Self::parse).collect()
    }
}

impl Selection {
    /// Of a query.
    ///
    /// # Errors
    /// A selector that the API does not know.
    pub(super) fn new(namespace: Option<&str>, labels: &str, fields: &str) -> Result<Self, String> {
        let fields = Requirement::parse_all(fields)?;
        let unknown = fields.iter().find(|field| !FIELDS.contains(&field.key.as_str()));
        if let Some(field) = unknown {
            return Err(format!("field label not supported: {}", field.key));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), labels: Requirement::parse_all(labels)?, fields })
    }

    pub(super) fn allows(&self, head: &Head) -> bool {
        let label = |key: &str| head.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
        let field = |key: &str| match key {
            "metadata.name" => head.key.name.as_str(),
            "metadata.namespace" => head.key.namespace.as_str(),
            "spec.clusterIP" => head.cluster_ip.as_deref().unwrap_or_default(),
            _ => head.node.as_deref().unwrap_or_default(),
        };
        self.namespace.as_ref().is_none_or(|namespace| *namespace == head.key.namespace)
            && self.labels.iter().all(|requirement| requirement.allows(label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.allows(Some(field(&requirement.key))))
    }
}

/// Fields that can be selected by here.
const FIELDS: [&str; 4] = ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.nodeName"];

#[cfg(test)]
mod tests {
    use super::{Head, Selection};
    use crate::apiserver::Key;

    #[test]
    fn selectors_are_those_of_the_api() {
        let head = Head {
            key: Key::new("shop", "web-1"),
            labels: vec![("app".into(), "web".into()), ("tier".into(), String::new())],
            node: Some("node1".into()),
            cluster_ip: Some("None".into()),
        };
        let allows = |labels, fields| Selection::new(None, labels, fields).unwrap().allows(&head);
        for (labels, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web,tier=", true),
            ("app==web", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web),tier", true),
            ("app notin (db,web)", false),
            ("other notin (a,b)", true),
            ("!service.kubernetes.io/headless,!other", true),
        ] {
            assert_eq!(allows(labels, ""), expected, "{labels}");
        }
        assert!(allows("", "spec.nodeName=node1,metadata.name=web-1"));
        assert!(!allows("", "spec.nodeName!=node1"));
        assert!(!allows("", "spec.clusterIP!=None"));
        assert!(!Selection::new(Some("other"), "", "").unwrap().allows(&head));
        Selection::new(None, "", "spec.hostName=x").unwrap_err();
        Selection::new(None, "app in web", "").unwrap_err();
    }
}
