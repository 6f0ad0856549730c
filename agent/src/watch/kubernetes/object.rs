// SPDX-License-Identifier: Apache-2.0
//! The agent's own objects in the place of the API's: the client lists and watches them as it does those.

use std::{borrow::Cow, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::DynamicResourceScope, runtime::watcher::Event};
use serde::{Deserialize, Deserializer};

use crate::model::{objects::Meta, watched_kinds};

/// An object with metadata.
pub(crate) trait Object {
    /// Its metadata.
    fn meta(&self) -> &Meta;
    /// The same, to be changed.
    fn meta_mut(&mut self) -> &mut Meta;
}

macro_rules! declare {
    ($($(#[$doc:meta])* $field:ident, $Variant:ident: $Type:ident = $Api:ty, $kind:literal, $plural:literal;)*) => {
        $(impl Object for crate::model::objects::$Type {
            fn meta(&self) -> &Meta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.metadata
            }
        })*
    };
}
watched_kinds!(declare);

/// An object `T` in the place of the API's `A`, with the metadata that the client wants.
#[derive(Debug)]
pub(crate) struct Watched<T, A> {
    metadata: ObjectMeta,
    object: T,
    of: PhantomData<fn() -> A>,
}

impl<T: Clone, A> Clone for Watched<T, A> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), object: self.object.clone(), of: PhantomData }
    }
}

impl<T, A> Watched<T, A> {
    /// The event of the object itself.
    pub(crate) fn unwrap(event: Event<Self>) -> Event<T> {
        match event {
            Event::Apply(watched) => Event::Apply(watched.object),
            Event::Delete(watched) => Event::Delete(watched.object),
            Event::Init => Event::Init,
            Event::InitApply(watched) => Event::InitApply(watched.object),
            Event::InitDone => Event::InitDone,
        }
    }
}

impl<'de, T: Object + Deserialize<'de>, A> Deserialize<'de> for Watched<T, A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = T::deserialize(deserializer)?;
        let resource_version = object.meta().resource_version.clone();
        let metadata = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, object, of: PhantomData })
    }
}

impl<T, A: Resource<DynamicType = ()>> Resource for Watched<T, A> {
    type DynamicType = ();
    // Objects of a namespace are asked for in it or in all.
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        A::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        A::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        A::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        A::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
