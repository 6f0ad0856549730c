// SPDX-License-Identifier: Apache-2.0

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;
use weft_image::{Digest, PROGRAMS, Packing, Weft};

use super::{
    PLATFORM,
    crates::{Crate, checksums, linked},
    documents,
    licences::third_party,
    origin::Origin,
    programs::Place,
    sbom,
};
use crate::build;

fn origin() -> Origin {
    Origin { version: "1.2.3", revision: Some("0123".to_owned()), source: None, modified: 1_700_000_000 }
}

fn sample(folder: &Path, name: &str, licence: &str) -> Crate {
    Crate {
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        licence: licence.to_owned(),
        repository: None,
        folder: folder.to_owned(),
        checksum: Some("ab".to_owned()),
        uses: BTreeSet::new(),
    }
}

#[test]
fn checksums_are_read_from_the_lock_file() {
    let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"own\"\n\
                version = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n";
    let expected = BTreeMap::from([(("a".to_owned(), "1.0.0".to_owned()), "ab".to_owned())]);
    assert_eq!(checksums(lock), expected);
}

#[test]
fn what_is_linked_has_the_ebpf_programs_and_neither_macros_nor_tests() {
    let linked = linked(&build::root(), PLATFORM).unwrap();
    let has = |name: &str| linked.iter().any(|linked| linked.name == name);
    for name in ["weft-agent", "weft-ebpf", "aya-ebpf", "kube-client", "ring", "seccompiler"] {
        assert!(has(name), "{name}");
    }
    for name in ["xtask", "weft-image", "flate2", "serde_derive", "proptest", "vhost"] {
        assert!(!has(name), "{name}");
    }
}

#[test]
fn every_linked_crate_is_in_the_list_of_licences_and_has_its_text() {
    let linked = linked(&build::root(), PLATFORM).unwrap();
    let text = third_party(&linked).unwrap();
    for linked in linked.iter().filter(|linked| linked.checksum.is_some()) {
        assert!(text.contains(&format!("\n{} {}: {}", linked.name, linked.version, linked.licence)), "{}", linked.name);
    }
    assert!(text.contains("ISC License") && text.contains("Permission is hereby granted, free of charge"));
}

#[test]
fn a_crate_without_the_text_of_its_licence_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = third_party(&[sample(folder.path(), "bare", "MIT")]).unwrap_err();
    assert!(error.to_string().contains("bare 1.0.0"), "{error:#}");
    fs::write(folder.path().join("LICENSE-MIT"), "do\r\nwhat\r\n").unwrap();
    let crates = [sample(folder.path(), "first", "MIT"), sample(folder.path(), "second", "MIT")];
    let text = third_party(&crates).unwrap();
    assert!(text.ends_with("\nfirst 1.0.0, second 1.0.0\n\ndo\nwhat\n"), "{text}");
}

#[test]
fn the_bill_of_materials_names_nothing_that_it_does_not_have() {
    let linked = linked(&build::root(), PLATFORM).unwrap();
    let runtime = sbom::Runtime {
        rust: "rustc 1.95.0 (abc 2026-04-14)".to_owned(),
        c_library: "2.36".to_owned(),
        compiler: "12.2.0".to_owned(),
    };
    let bytes = sbom::document(&linked, &origin(), &runtime).unwrap();
    assert_eq!(bytes, sbom::document(&linked, &origin(), &runtime).unwrap());
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let known: BTreeSet<_> = list(&document["components"]).iter().map(|part| part["bom-ref"].to_string()).collect();
    assert_eq!(known.len(), linked.len() + 3, "two components have one reference");
    for dependency in list(&document["dependencies"]) {
        for used in list(&dependency["dependsOn"]) {
            assert!(known.contains(&used.to_string()), "{used}");
        }
    }
    let own = |name: &str| format!("weft:{name}@{}", env!("CARGO_PKG_VERSION"));
    let agent = list(&document["dependencies"]).into_iter().find(|part| part["ref"] == own("weft-agent"));
    assert!(list(&agent.unwrap()["dependsOn"]).contains(&own("weft-dataplane").into()));
}

#[test]
fn the_annotations_are_those_of_the_specification() {
    let annotations = origin().annotations();
    assert_eq!(annotations["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
    assert_eq!(annotations["org.opencontainers.image.revision"], "0123");
    assert!(!annotations.contains_key("org.opencontainers.image.source"), "nobody has named it");
}

#[test]
fn a_program_that_names_a_folder_of_the_machine_is_noticed() {
    let place = |path: &str, name, telling| Place { path: path.into(), name, telling };
    assert!(place("/home/me/weft", "/weft", "").is_named_in(b"at /home/me/weft/agent/src/run.rs"));
    assert!(!place("/home/me/weft", "/weft", "").is_named_in(b"at /weft/agent/src/run.rs"));
    assert!(!place("/weft", "/weft", "").is_named_in(b"at /weft/agent/src/run.rs"));
    assert!(!place("/usr", "/rust", "lib/rustlib").is_named_in(b"/usr/lib/locale"));
    assert!(place("/usr", "/rust", "lib/rustlib").is_named_in(b"/usr/lib/rustlib/src/rust/library"));
}

/// Programs stand in for Weft's own; licences, bill of materials and everything else are what a release has.
#[test]
fn what_is_made_twice_is_the_same() {
    let made = || {
        let folder = tempfile::tempdir().unwrap();
        for name in PROGRAMS {
            fs::copy("/bin/true", folder.path().join(name)).unwrap();
        }
        let documents = documents::all(&build::root(), &linked(&build::root(), PLATFORM).unwrap(), &origin()).unwrap();
        let weft = Weft {
            programs: folder.path(),
            documents,
            platform: PLATFORM,
            modified: origin().modified,
            annotations: origin().annotations(),
        };
        let (layout, archive) = (folder.path().join("oci"), folder.path().join("image.tar"));
        let image = weft.write_image("weft:1", Packing::Gzip, &layout, &archive).unwrap();
        let tarball = folder.path().join("weft.tar.gz");
        weft.write_release("weft", &documents::units(&build::root()).unwrap(), &tarball).unwrap();
        let bytes = [archive, tarball].map(|path| Digest::of(&fs::read(path).unwrap()));
        (image.digest, bytes)
    };
    assert_eq!(made(), made());
}
