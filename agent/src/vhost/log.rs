// SPDX-License-Identifier: Apache-2.0
//! The log of a device, which is usually in memory: it is kept short.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

/// A log is cut when it is longer than this.
const MOST: u64 = 1 << 20;
/// And its last lines are kept, so many bytes of them.
const KEPT: u64 = 64 << 10;
/// The end of a log that is looked at for its last line.
const TAIL: u64 = 4096;
/// A last line is told up to here.
const MAX_LINE: usize = 200;

/// Cuts a log that has become too long to its last lines. The device appends, so that it goes on behind them; a line that it
/// writes in this moment may come before them.
///
/// # Errors
/// What the file system says; a log that is not there is fine.
pub(super) fn cut(path: &Path) -> io::Result<()> {
    let mut log = match File::options().read(true).append(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        log => log?,
    };
    if log.metadata()?.len() <= MOST {
        return Ok(());
    }
    let tail = tail(&mut log, KEPT)?;
    let whole_lines = tail.iter().position(|byte| *byte == b'\n').and_then(|end| tail.get(end + 1..));
    log.set_len(0)?;
    log.write_all(whole_lines.unwrap_or_default())
}

/// The last line of a log, for people.
pub(super) fn last_line(path: &Path) -> Option<String> {
    let tail = tail(&mut File::open(path).ok()?, TAIL).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    // clap's hint comes after what is wrong.
    let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("For more information");
    let line = tail.lines().rfind(says)?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(MAX_LINE).collect())
}

fn tail(log: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut tail = Vec::new();
    log.take(most).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write as _,
    };

    use super::{KEPT, MOST, cut, last_line};

    #[test]
    fn the_last_line_of_a_log_is_short_and_printable() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_line(&log), None);
        fs::write(&log, format!("first\n\u{1b}[31m{}\n\n", "x".repeat(5000))).unwrap();
        assert_eq!(last_line(&log).unwrap().len(), 200);
        fs::write(&log, "first\n\u{1b}[31mlast\n\n").unwrap();
        assert_eq!(last_line(&log).unwrap(), "[31mlast");
        fs::write(&log, "error: wrong\n\nFor more information, try '--help'.\n").unwrap();
        assert_eq!(last_line(&log).unwrap(), "error: wrong");
    }

    #[test]
    fn a_long_log_is_cut_to_its_last_lines_and_goes_on_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        cut(&log).unwrap();
        let mut device = File::options().create(true).append(true).open(&log).unwrap();
        let mut number = 0;
        while device.metadata().unwrap().len() <= MOST {
            cut(&log).unwrap();
            writeln!(device, "line {number}").unwrap();
            number += 1;
        }
        cut(&log).unwrap();
        writeln!(device, "after").unwrap();
        let text = fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(text.len() as u64 <= KEPT + 6, "{} bytes", text.len());
        let first = number + 1 - lines.len();
        for (line, number) in lines.iter().zip(first..number) {
            assert_eq!(*line, format!("line {number}"));
        }
        assert_eq!(lines.last(), Some(&"after"));
    }

    #[test]
    fn a_log_of_one_endless_line_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "x".repeat(MOST as usize + 1)).unwrap();
        cut(&log).unwrap();
        assert_eq!(fs::read(&log).unwrap(), b"");
    }
}
