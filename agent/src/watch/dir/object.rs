// SPDX-License-Identifier: Apache-2.0
//! An object of a manifest.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    model::{Changed, Deltas, ObjectKey, watched_kinds},
    watch::key_of,
};

/// Kind and key of an object.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Name {
    pub(crate) kind: &'static str,
    pub(crate) key: ObjectKey,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ty = $Api:ty, $kind:literal, $plural:literal;)*) => {
        /// An object of a kind that Weft reads.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "a folder has few objects, most of them pods")]
        pub(crate) enum Object {
            $($Variant($Api),)*
        }

        /// All objects of the folder, as the API has them.
        #[derive(Debug, Default)]
        pub(crate) struct Written {
            $($(#[$doc])* pub(crate) $field: BTreeMap<ObjectKey, Arc<$Api>>,)*
            /// What is wrong.
            pub(crate) problems: Vec<String>,
        }

        impl Written {
            /// The same with what the plan reads.
            pub(crate) fn deltas(&self) -> serde_json::Result<Deltas> {
                Ok(Deltas { $($field: slim(&self.$field)?,)* })
            }
        }

        impl Object {
            /// Kind and key.
            pub(crate) fn name(&self) -> Name {
                let (kind, metadata) = match self {
                    $(Self::$Variant(object) => ($kind, &object.metadata),)*
                };
                Name { kind, key: key_of(metadata) }
            }

            /// Puts it to the others.
            pub(crate) fn insert(&self, key: ObjectKey, snapshot: &mut Written) {
                match self.clone() {
                    $(Self::$Variant(object) => drop(snapshot.$field.insert(key, Arc::new(object))),)*
                }
            }
        }
    };
}
watched_kinds!(declare);

fn slim<A: Serialize, T: DeserializeOwned>(objects: &BTreeMap<ObjectKey, Arc<A>>) -> serde_json::Result<Changed<T>> {
    let slim = |(key, object): (&ObjectKey, &Arc<A>)| {
        let mut value = serde_json::to_value(&**object)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
        Ok((key.clone(), Arc::new(serde_json::from_value(value)?)))
    };
    objects.iter().map(slim).collect::<serde_json::Result<_>>().map(Changed::all)
}
