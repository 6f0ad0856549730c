// SPDX-License-Identifier: Apache-2.0

//! A folder of images: OCI image layout 1.1, with the `manifest.json` of Docker's image specification 1.2 beside it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::archive::{gzip, write_tar};
use crate::digest::{Digest, Hashing};
use crate::image::Image;
use crate::tree::Tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const BLOBS: &str = "blobs/sha256";
/// What containerd and Docker call an image after, and what tools that know one image by its tag do.
const NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

/// Whether a layer is compressed: small for registries, or quick for what is imported on the same machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Plain,
    /// By gzip.
    Gzip,
}

/// What an index or a manifest says of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its kind.
    pub media_type: &'static str,
    /// Digest of its bytes: of a manifest, what registries call the image's digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A layer that is in a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub blob: Descriptor,
    /// Digest of the tar file that it is, uncompressed.
    pub content: Digest,
}

/// A layout that is being written.
#[derive(Debug)]
pub struct Layout {
    folder: PathBuf,
    index: Vec<Value>,
    docker: Vec<Value>,
}

impl Layout {
    /// An empty layout in `folder`; what is there is removed.
    ///
    /// # Errors
    /// The folder cannot be removed or made.
    pub fn create(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        let blobs = folder.join(BLOBS);
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        Ok(Self { folder: folder.to_owned(), index: Vec::new(), docker: Vec::new() })
    }

    /// Writes a layer of `tree`, all of it modified at `modified` (seconds since 1970).
    ///
    /// # Errors
    /// A file of the tree cannot be read, or the blob not written.
    pub fn layer(&self, tree: &Tree, modified: u64, packing: Packing) -> Result<Layer> {
        self.write_layer(packing, |mut output| write_tar(tree, modified, &mut output))
    }

    /// Takes the tar file at `path` as a layer, uncompressed and as it is.
    ///
    /// # Errors
    /// The file cannot be read, or the blob not written.
    pub fn layer_of_tar(&self, path: &Path) -> Result<Layer> {
        self.write_layer(Packing::Plain, |mut output| {
            let mut input = File::open(path).with_context(|| format!("open {}", path.display()))?;
            io::copy(&mut input, &mut output).with_context(|| format!("copy {}", path.display()))?;
            Ok(())
        })
    }

    /// Writes configuration and manifest of `image`, whose layers are in this layout, and lists it.
    ///
    /// # Errors
    /// A blob cannot be written.
    pub fn add(&mut self, image: &Image) -> Result<Descriptor> {
        let config = self.json_blob(CONFIGURATION, &image.configuration())?;
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.blob.json()).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.json(),
            "layers": layers,
        });
        if !image.annotations.is_empty() {
            manifest["annotations"] = json!(image.annotations);
        }
        let manifest = self.json_blob(MANIFEST, &manifest)?;
        self.index.push(listed(image, &manifest));
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.blob.path()).collect();
        self.docker.push(json!({"Config": config.path(), "RepoTags": [image.reference], "Layers": layers}));
        Ok(manifest)
    }

    /// Writes what lists the images. Without it, the folder is no layout.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.json_file("index.json", &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.index}))?;
        self.json_file("manifest.json", &json!(self.docker))?;
        self.json_file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
    }

    /// Writes the whole folder as the tar file `target`, which is there only when it is whole.
    ///
    /// # Errors
    /// The folder cannot be read, or the file not written.
    pub fn archive(&self, target: &Path, modified: u64) -> Result<()> {
        let partial = target.with_added_extension("partial");
        let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
        let mut output = BufWriter::new(file);
        write_tar(&Tree::of_folder(&self.folder)?.with_plain_modes(), modified, &mut output)?;
        output.flush().with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, target).with_context(|| format!("rename to {}", target.display()))
    }

    fn write_layer(&self, packing: Packing, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Layer> {
        let partial = self.folder.join("layer.partial");
        let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
        let output = Hashing::new(BufWriter::new(file));
        let ((output, digest, size), content, media_type) = match packing {
            Packing::Plain => {
                let mut output = output;
                write(&mut output)?;
                let (file, digest, size) = output.finish();
                ((file, digest.clone(), size), digest, LAYER)
            }
            Packing::Gzip => {
                let mut input = Hashing::new(gzip(output));
                write(&mut input)?;
                let (encoder, content, _) = input.finish();
                (encoder.finish().context("end the compressed layer")?.finish(), content, LAYER_GZIP)
            }
        };
        output.into_inner().map_err(io::IntoInnerError::into_error).context("write the layer")?;
        let blob = Descriptor { media_type, digest, size };
        let target = self.folder.join(blob.path());
        fs::rename(&partial, &target).with_context(|| format!("rename to {}", target.display()))?;
        Ok(Layer { blob, content })
    }

    fn json_blob(&self, media_type: &'static str, value: &Value) -> Result<Descriptor> {
        let bytes = value.to_string().into_bytes();
        let blob = Descriptor { media_type, digest: Digest::of(&bytes), size: bytes.len() as u64 };
        let path = self.folder.join(blob.path());
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(blob)
    }

    fn json_file(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

impl Descriptor {
    /// Where the blob is in its layout.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{BLOBS}/{}", self.digest.hex())
    }

    fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.size})
    }
}

/// The index's entry of an image.
fn listed(image: &Image, manifest: &Descriptor) -> Value {
    let tag = image.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let mut entry = manifest.json();
    entry["platform"] = image.platform.descriptor();
    entry["annotations"] = json!({NAME: image.reference, REFERENCE_NAME: tag});
    entry
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
