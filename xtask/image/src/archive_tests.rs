// SPDX-License-Identifier: Apache-2.0

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

const TIME: u64 = 1_700_000_000;

fn sample(file: &Path) -> Tree {
    fs::write(file, vec![b'x'; 700]).unwrap();
    let mut tree = Tree::default();
    tree.file("z/last", 0o755, Source::File(file.to_owned()));
    tree.file("a", 0o640, Source::Bytes(b"first".to_vec()));
    let long = format!("{}/{}", "f".repeat(90), "n".repeat(90));
    tree.file(&long, 0o644, Source::Bytes(vec![0; BLOCK]));
    tree
}

fn written(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_tar(tree, TIME, &mut bytes).unwrap();
    bytes
}

fn tar(arguments: &[&str], archive: &Path) -> String {
    let output = Command::new("tar").args(arguments).arg("--file").arg(archive).env("TZ", "UTC").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tar_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive.tar");
    fs::write(&archive, written(&sample(&folder.path().join("file")))).unwrap();
    let (folders, name) = ("f".repeat(90), "n".repeat(90));
    let expected = format!(
        "-rw-r----- 0/0 5 2023-11-14 22:13 a\n\
         drwxr-xr-x 0/0 0 2023-11-14 22:13 {folders}/\n\
         -rw-r--r-- 0/0 512 2023-11-14 22:13 {folders}/{name}\n\
         drwxr-xr-x 0/0 0 2023-11-14 22:13 z/\n\
         -rwxr-xr-x 0/0 700 2023-11-14 22:13 z/last\n"
    );
    let listed = tar(&["--list", "--verbose", "--numeric-owner"], &archive);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&listed), words(&expected));
    assert_eq!(tar(&["--extract", "--to-stdout", "a"], &archive), "first");
    assert_eq!(tar(&["--extract", "--to-stdout", "z/last"], &archive), "x".repeat(700));
}

#[test]
fn neither_the_files_times_and_modes_nor_the_order_of_insertion_count() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let first = written(&sample(&file));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let mut other = Tree::default();
    let tree = sample(&file);
    let entries: Vec<_> = tree.entries().collect();
    for (path, entry) in entries.into_iter().rev() {
        if let Content::File(source) = &entry.content {
            other.file(path, entry.mode, source.clone());
        }
    }
    assert_eq!(first, written(&other));
}

#[test]
fn the_compressed_header_names_neither_time_nor_system() {
    let mut bytes = Vec::new();
    write_gzip(&Tree::default(), TIME, &mut bytes).unwrap();
    // RFC 1952: magic, deflate, no flags, no time, best compression, unknown system.
    assert_eq!(bytes[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255]);
}

#[test]
fn what_the_format_cannot_tell_is_refused() {
    let mut tree = Tree::default();
    tree.file(&"n".repeat(101), 0o644, Source::Bytes(Vec::new()));
    let error = write_tar(&tree, TIME, &mut Vec::new()).unwrap_err();
    assert!(format!("{error:#}").contains("too long"), "{error:#}");
}
