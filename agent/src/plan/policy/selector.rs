// SPDX-License-Identifier: Apache-2.0
//! Label selectors (meta/v1 `LabelSelector`).

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fmt,
    sync::{Arc, LazyLock},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::model::Known;
pub(crate) use crate::model::Labels;

/// A selector whose requirements must all hold; without any it selects everything. Equal selectors compare equal, however
/// they were written down. There are some for each policy, and several who keep them: of equal ones there is one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Selector(Arc<[Requirement]>);

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(all: I) -> Self {
        static KNOWN: LazyLock<Known<Arc<[Requirement]>>> = LazyLock::new(Known::default);
        let all: BTreeSet<Requirement> = all.into_iter().collect();
        let all: Vec<Requirement> = all.into_iter().collect();
        Self(KNOWN.one(&*all, || all.as_slice().into(), |known| Arc::strong_count(known) > 1))
    }
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Requirement {
    key: Box<str>,
    test: Test,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Test {
    In(Values),
    NotIn(Values),
    Exists,
    DoesNotExist,
}

/// Values of a label, each once, in order.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Values(Box<[Box<str>]>);

impl<T: Into<Box<str>>> FromIterator<T> for Values {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let values: BTreeSet<Box<str>> = values.into_iter().map(Into::into).collect();
        Self(values.into_iter().collect())
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}

impl Values {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.iter().map(|value| &**value)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, value: &str) -> bool {
        self.0.binary_search_by(|known| (**known).cmp(value)).is_ok()
    }

    fn has_all(&self, others: &Self) -> bool {
        others.iter().all(|value| self.contains(value))
    }
}

impl Selector {
    /// The empty selector.
    pub(crate) fn everything() -> Self {
        Self::default()
    }

    /// Reads a selector of the API.
    ///
    /// # Errors
    /// What the API server would refuse: an unknown operator, or values that the operator does not take.
    pub(crate) fn parse(selector: &LabelSelector) -> Result<Self, String> {
        let labels = selector.match_labels.iter().flatten().map(|(key, value)| {
            Ok(Requirement { key: key.as_str().into(), test: Test::In([value.as_str()].into_iter().collect()) })
        });
        let expressions = selector.match_expressions.iter().flatten().map(Requirement::parse);
        labels.chain(expressions).collect()
    }

    /// How much work [`Selector::matches`] is at most, in looks at a requirement.
    pub(crate) fn cost(&self) -> usize {
        1 + self.0.len()
    }

    /// Whether an object with these labels is selected.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels.get(&requirement.key)))
    }

    /// Whether it selects everything.
    pub(crate) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all that `other` selects is selected; false where that takes more than a look at each requirement.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.0.iter().all(|wider| other.0.iter().any(|narrower| wider.covers(narrower)))
    }

    /// The key and the values, where an object is selected for having one of some values of one key.
    pub(crate) fn values(&self) -> Option<(&str, &Values)> {
        self.asked_values().filter(|_| self.0.len() == 1)
    }

    /// The keys that it asks for.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|requirement| &*requirement.key)
    }

    /// A key and the values of which an object must have one.
    pub(crate) fn asked_values(&self) -> Option<(&str, &Values)> {
        self.0.iter().find_map(|requirement| match &requirement.test {
            Test::In(values) => Some((&*requirement.key, values)),
            _ => None,
        })
    }

    /// Selects what has one of some values of a key.
    pub(crate) fn of_values(key: &str, values: Values) -> Self {
        [Requirement { key: key.into(), test: Test::In(values) }].into_iter().collect()
    }

    /// As a query of the API (`labelSelector`); none: something in it is no label, so that a server would refuse it.
    pub(crate) fn query(&self) -> Option<String> {
        let parts = self.0.iter().map(Requirement::query).collect::<Option<Vec<_>>>()?;
        Some(parts.join(","))
    }
}

/// Whether a server takes text as the name of a key: `validation.IsQualifiedName` of `k8s.io/apimachinery`.
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && ends.into_iter().all(|end| end.is_some_and(|end| end.is_ascii_alphanumeric()))
        && text.bytes().all(is_inner)
}

/// As [`is_name`], with a DNS name before it.
fn is_key(text: &str) -> bool {
    let Some((prefix, name)) = text.split_once('/') else { return is_name(text) };
    prefix.len() <= 253 && prefix.split('.').all(|part| is_name(part) && !part.contains('_')) && is_name(name)
}

/// Whether a server takes text as a value: `validation.IsValidLabelValue`.
fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

impl Requirement {
    fn parse(expression: &LabelSelectorRequirement) -> Result<Self, String> {
        let LabelSelectorRequirement { key, operator, values } = expression;
        let values: Values = values.iter().flatten().map(String::as_str).collect();
        let test = match (operator.as_str(), values.is_empty()) {
            ("In", false) => Test::In(values),
            ("NotIn", false) => Test::NotIn(values),
            ("In" | "NotIn", true) => return Err(format!("matchExpressions '{key}': {operator} needs values")),
            ("Exists", true) => Test::Exists,
            ("DoesNotExist", true) => Test::DoesNotExist,
            ("Exists" | "DoesNotExist", false) => {
                return Err(format!("matchExpressions '{key}': {operator} takes no values"));
            }
            _ => {
                return Err(format!(
                    "matchExpressions '{key}': operator '{operator}' is not In, NotIn, Exists or DoesNotExist"
                ));
            }
        };
        Ok(Self { key: key.as_str().into(), test })
    }

    fn holds(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }

    /// Whether it holds wherever `other` does.
    fn covers(&self, other: &Self) -> bool {
        self.key == other.key
            && match (&self.test, &other.test) {
                (Test::In(wider), Test::In(narrower)) => wider.has_all(narrower),
                (Test::NotIn(fewer), Test::NotIn(more)) => more.has_all(fewer),
                (Test::NotIn(values), Test::In(others)) => !others.iter().any(|value| values.contains(value)),
                (Test::Exists, Test::In(_) | Test::Exists) => true,
                (Test::NotIn(_) | Test::DoesNotExist, Test::DoesNotExist) => true,
                _ => false,
            }
    }

    /// Source: `k8s.io/apimachinery/pkg/labels.Parse`.
    fn query(&self) -> Option<String> {
        let key = &self.key;
        let list = |values: &Values| {
            let all: Vec<&str> = values.iter().collect();
            all.iter().all(|value| is_value(value)).then(|| all.join(","))
        };
        if !is_key(key) {
            return None;
        }
        let is_empty = |values: &Values| values.iter().all(str::is_empty);
        Some(match &self.test {
            // The parser takes brackets without anything in them for no value at all.
            Test::In(values) if is_empty(values) => format!("{key}="),
            Test::NotIn(values) if is_empty(values) => format!("{key}!="),
            Test::In(values) => format!("{key} in ({})", list(values)?),
            Test::NotIn(values) => format!("{key} notin ({})", list(values)?),
            Test::Exists => key.to_string(),
            Test::DoesNotExist => format!("!{key}"),
        })
    }
}

/// One text for one meaning: keys and values are quoted, requirements sorted.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for Requirement { key, test } in &*self.0 {
            match test {
                Test::In(values) => write!(f, "{key:?} in {values:?};")?,
                Test::NotIn(values) => write!(f, "{key:?} notin {values:?};")?,
                Test::Exists => write!(f, "{key:?};")?,
                Test::DoesNotExist => write!(f, "!{key:?};")?,
            }
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        let values = Some(values.iter().map(|value| (*value).to_owned()).collect());
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values,
            }]),
            match_labels: None,
        }
    }

    #[rstest]
    #[case::in_same("In", &["web", "db"], Some("web"), true)]
    #[case::in_other("In", &["web"], Some("db"), false)]
    #[case::in_missing("In", &["web"], None, false)]
    #[case::not_in_same("NotIn", &["web"], Some("web"), false)]
    #[case::not_in_other("NotIn", &["web"], Some("db"), true)]
    #[case::not_in_missing_key("NotIn", &["web"], None, true)]
    #[case::exists("Exists", &[], Some(""), true)]
    #[case::exists_missing("Exists", &[], None, false)]
    #[case::does_not_exist("DoesNotExist", &[], Some("x"), false)]
    #[case::does_not_exist_missing("DoesNotExist", &[], None, true)]
    fn operators(#[case] operator: &str, #[case] values: &[&str], #[case] value: Option<&str>, #[case] expected: bool) {
        let selector = Selector::parse(&expression("app", operator, values)).unwrap();
        let labels = value.map(|value| ("app".to_owned(), value.to_owned())).into_iter().collect();
        assert_eq!(selector.matches(&labels), expected);
    }

    #[rstest]
    #[case::unknown("Gt", &["1"], "operator 'Gt'")]
    #[case::in_nothing("In", &[], "needs values")]
    #[case::exists_with("Exists", &["x"], "takes no values")]
    fn refused(#[case] operator: &str, #[case] values: &[&str], #[case] expected: &str) {
        let error = Selector::parse(&expression("app", operator, values)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    fn selector(key: &str, operator: &str, values: &[&str]) -> Selector {
        Selector::parse(&expression(key, operator, values)).unwrap()
    }

    #[rstest]
    #[case::some_of_the_values("In", &["a", "b"], "In", &["a"], true)]
    #[case::more_values("In", &["a"], "In", &["a", "b"], false)]
    #[case::any_value("Exists", &[], "In", &["a"], true)]
    #[case::one_value_of_any("In", &["a"], "Exists", &[], false)]
    #[case::other_values("NotIn", &["a"], "In", &["b"], true)]
    #[case::that_value("NotIn", &["a"], "In", &["a", "b"], false)]
    #[case::more_is_left_out("NotIn", &["a"], "NotIn", &["a", "b"], true)]
    #[case::less_is_left_out("NotIn", &["a", "b"], "NotIn", &["a"], false)]
    #[case::none_is_another_value("NotIn", &["a"], "DoesNotExist", &[], true)]
    #[case::any_other_value_may_be_none("Exists", &[], "NotIn", &["a"], false)]
    fn what_covers(
        #[case] wider: &str,
        #[case] of: &[&str],
        #[case] narrower: &str,
        #[case] values: &[&str],
        #[case] expected: bool,
    ) {
        let (wider, narrower) = (selector("app", wider, of), selector("app", narrower, values));
        assert_eq!(wider.covers(&narrower), expected);
        assert!(Selector::everything().covers(&narrower) && !narrower.covers(&Selector::everything()));
        let tier = selector("tier", "Exists", &[]);
        let both: Selector = narrower.0.iter().chain(&*tier.0).cloned().collect();
        assert_eq!(wider.covers(&both), expected, "one requirement more selects less");
        assert!(!both.covers(&narrower));
    }

    #[rstest]
    #[case("In", &["b", "a"], Some("app.x/y in (a,b)"))]
    #[case("In", &[""], Some("app.x/y="))]
    #[case("NotIn", &["a"], Some("app.x/y notin (a)"))]
    #[case("Exists", &[], Some("app.x/y"))]
    #[case("DoesNotExist", &[], Some("!app.x/y"))]
    #[case::not_a_label("In", &["a),tier in (b"], None)]
    #[case::a_path("In", &["a/b"], None)]
    #[case::no_beginning("NotIn", &["-a"], None)]
    #[case::too_long("In", &["a123456789b123456789c123456789d123456789e123456789f123456789g123"], None)]
    fn queries(#[case] operator: &str, #[case] values: &[&str], #[case] expected: Option<&str>) {
        assert_eq!(selector("app.x/y", operator, values).query().as_deref(), expected);
    }

    #[test]
    fn labels_and_an_in_of_one_are_the_same_selector() {
        let labels = LabelSelector {
            match_labels: Some(BTreeMap::from([("app".into(), "web".into())])),
            match_expressions: None,
        };
        let labels = Selector::parse(&labels).unwrap();
        assert_eq!(labels, Selector::parse(&expression("app", "In", &["web"])).unwrap());
        assert_eq!(labels.to_string(), r#"{"app" in {"web"};}"#);
        assert!(Selector::everything().matches(&Labels::new()));
    }
}
