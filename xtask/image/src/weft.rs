// SPDX-License-Identifier: Apache-2.0

//! What is in Weft's own image and in its release archive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::archive::write_gzip;
use crate::image::{Image, Platform};
use crate::layout::{Descriptor, Layout, Packing};
use crate::library::{is_dynamic, libraries};
use crate::tree::{Source, Tree};

/// The reference under which `manifests/weft.yaml` names the image.
pub const REFERENCE: &str = "localhost/weft:dev";
/// The programs: the agent finds plugin and device beside itself.
pub const PROGRAMS: [&str; 4] = ["weft", "weft-agent", "weft-cni", "weft-vhost"];
/// What is started unless the manifest says otherwise.
const AGENT: &str = "/usr/local/bin/weft-agent";

/// A text that is delivered with the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// File name; in the release archive it may have a folder before it.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Weft as it is delivered.
#[derive(Clone, Debug)]
pub struct Weft<'a> {
    /// The folder where [`PROGRAMS`] are. Those that are linked dynamically bring their libraries into the image.
    pub programs: &'a Path,
    /// Licences, a bill of materials.
    pub documents: Vec<Document>,
    /// What it runs on.
    pub platform: Platform,
    /// When everything was modified and the image made, in seconds since 1970.
    pub modified: u64,
    /// The image's annotations and labels.
    pub annotations: BTreeMap<String, String>,
}

impl Weft<'_> {
    /// Writes the image into the layout `folder`, which is replaced, and as the tar file `archive`; returns the image's manifest.
    ///
    /// # Errors
    /// A program has not been built, or a file cannot be written.
    pub fn write_image(&self, reference: &str, packing: Packing, folder: &Path, archive: &Path) -> Result<Descriptor> {
        let mut layout = Layout::create(folder)?;
        let layers = vec![layout.layer(&self.image_tree()?, self.modified, packing)?];
        let manifest = layout.add(&Image {
            reference: reference.to_owned(),
            platform: self.platform,
            layers,
            entrypoint: vec![AGENT.to_owned()],
            command: Vec::new(),
            created: self.modified,
            annotations: self.annotations.clone(),
        })?;
        layout.finish()?;
        layout.archive(archive, self.modified)?;
        Ok(manifest)
    }

    /// Writes the release archive: programs, documents and `units` in one folder `name`, as the file `target`.
    ///
    /// # Errors
    /// As [`Weft::write_image`].
    pub fn write_release(&self, name: &str, units: &[Document], target: &Path) -> Result<()> {
        let mut tree = Tree::default();
        for program in PROGRAMS {
            tree.file(&format!("{name}/bin/{program}"), 0o755, self.program(program)?);
        }
        for document in self.documents.iter().chain(units) {
            add(&mut tree, &format!("{name}/{}", document.name), document);
        }
        let partial = target.with_added_extension("partial");
        let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
        write_gzip(&tree, self.modified, BufWriter::new(file))?;
        fs::rename(&partial, target).with_context(|| format!("rename to {}", target.display()))
    }

    fn image_tree(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        for program in PROGRAMS {
            tree.file(&format!("usr/local/bin/{program}"), 0o755, self.program(program)?);
            self.add_libraries(&mut tree, program)?;
        }
        for document in &self.documents {
            add(&mut tree, &format!("usr/share/doc/weft/{}", document.name), document);
        }
        Ok(tree)
    }

    fn program(&self, name: &str) -> Result<Source> {
        let path = self.programs.join(name);
        ensure!(path.is_file(), "{} does not exist: build it with `cargo xtask build`", path.display());
        Ok(Source::File(path))
    }

    /// Puts what the dynamic linker would load at the same paths.
    fn add_libraries(&self, tree: &mut Tree, program: &str) -> Result<()> {
        let path = self.programs.join(program);
        if !is_dynamic(&path)? {
            return Ok(());
        }
        for library in libraries(&path)? {
            let inside = library.to_string_lossy().trim_start_matches('/').to_owned();
            tree.file(&inside, 0o755, Source::File(library));
        }
        Ok(())
    }
}

fn add(tree: &mut Tree, path: &str, document: &Document) {
    tree.file(path, 0o644, Source::Bytes(document.bytes.clone()));
}
