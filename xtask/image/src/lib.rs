// SPDX-License-Identifier: Apache-2.0

//! Container images written without a container engine and without a registry, the same bytes each time.
//!
//! A [`Tree`] of files becomes a layer, layers become an [`Image`], images stand in a [`Layout`]: a folder as the OCI image layout
//! specification 1.1 wants it, with Docker's `manifest.json` beside, so that a tar file of it is taken by `ctr images import`, by
//! `docker load` and by what reads `oci-archive`. [`Weft`] is what is in Weft's own image and release archive.
//!
//! Nothing of the machine gets in: entries are sorted by name, belong to 0:0, and have the time that the caller names.

mod archive;
mod digest;
mod image;
mod layout;
mod library;
mod time;
mod tree;
mod weft;

pub use archive::write_gzip;
pub use digest::Digest;
pub use image::{Image, Platform};
pub use layout::{Descriptor, Layer, Layout, Packing};
pub use library::{is_dynamic, libraries};
pub use time::rfc3339;
pub use tree::{Content, Entry, Source, Tree};
pub use weft::{Document, PROGRAMS, REFERENCE, Weft};
