// SPDX-License-Identifier: Apache-2.0
//! Connections of versions whose tables are not this one's: of another layout, another size, or another ABI version. A program of
//! theirs, pinned beside their maps, writes entries as [`ConnectionRecord`]s, of which this version makes entries of its own.

use std::{os::fd::AsFd as _, path::Path};

use aya::{
    TestRun as _, TestRunOptions,
    programs::{ProgramError, SchedClassifier},
};
use weft_abi::{ConnectionRecord, ExportRequest, Flow, FlowKey4, FlowKey6, generation::EPOCH, map, program};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::{
    Error, FlowTable, Maps, TableKey,
    error::Result,
    maps::id,
    pin::{PinDir, open_map, remove_map, unless_gone},
    sys::{Batch, RawMap},
};

/// Name of the pin of the program that exports, in the folder of a version's maps.
pub(crate) const EXPORTER: &str = program::EXPORT_CONNECTIONS;

/// Bytes that a request may have: what a kernel with pages of 4 KiB takes as a packet, with room for its own headers.
const REQUEST: usize = 3072;

/// The flow tables of another version.
pub(crate) struct OtherTables {
    exporter: SchedClassifier,
    /// What the exporter calls each.
    tables: Vec<(u32, RawMap)>,
}

/// What other versions have of connections in tables of their own.
#[derive(Default)]
pub(crate) struct Others {
    pub(crate) tables: Vec<OtherTables>,
    /// There are some that cannot tell: their connections begin anew.
    pub(crate) some_are_lost: bool,
}

/// The flow tables of other versions that this one does not use itself.
pub(crate) fn others(pins: &PinDir, maps: &Maps) -> Result<Others> {
    let mut others = Others::default();
    for other in pins.others()? {
        let dir = PinDir::of_version(&other).maps;
        let tables = tables(&dir, maps)?;
        if tables.is_empty() {
            continue;
        }
        match exporter(&dir.join(EXPORTER)) {
            Ok(exporter) => others.tables.push(OtherTables { exporter, tables }),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "another version cannot tell of its connections: they begin anew");
                others.some_are_lost = true;
            }
        }
    }
    Ok(others)
}

/// Another version's program, which knows the record: it is asked for none at all.
fn exporter(pin: &Path) -> Result<SchedClassifier> {
    let exporter = SchedClassifier::from_pin(pin).map_err(failed("open pinned"))?;
    let request = ExportRequest { version: ConnectionRecord::VERSION.into(), ..ExportRequest::default() };
    ask(&exporter, request.as_bytes())?;
    Ok(exporter)
}

/// Once connections have been taken over, no later start takes them for new ones.
pub(crate) fn forget(pins: &PinDir) -> Result<()> {
    pins.others()?
        .iter()
        .try_for_each(|other| unless_gone(remove_map(&PinDir::of_version(other).maps.join(EXPORTER))).map(drop))
}

/// The tables in a folder of maps that this version does not use itself.
fn tables(dir: &Path, maps: &Maps) -> Result<Vec<(u32, RawMap)>> {
    const V6: u32 = ExportRequest::V6;
    const SPILLED: u32 = ExportRequest::SPILLED;
    let mut tables = Vec::new();
    for (of, name, own) in [
        (0, map::FLOWS4, maps.lines4().raw()),
        (V6, map::FLOWS6, maps.lines6().raw()),
        (SPILLED, map::SPILLED4, maps.spilled4().raw()),
        (V6 | SPILLED, map::SPILLED6, maps.spilled6().raw()),
    ] {
        // Earlier builds have no hash beside the table.
        let Some(fd) = unless_gone(open_map(&dir.join(name)))? else { continue };
        if id(name, fd.as_fd())? != id(name, own.fd())? {
            tables.push((of, RawMap::new(fd, None).map_err(Error::map(name, "ask the kernel about"))?));
        }
    }
    Ok(tables)
}

impl OtherTables {
    /// Takes connections over that are not here, or whose last packet they had; how many entries. `progress` is called now and then.
    ///
    /// What cannot be taken over begins anew, and is told: programs that nobody plans for any more must not go on for its sake.
    pub(crate) fn copy(&self, maps: &Maps, progress: impl Fn() -> Result<()>) -> Result<usize> {
        let epoch = maps.generations().get(EPOCH)?;
        let (mut copied, mut failed) = (0, None);
        for (of, table) in &self.tables {
            let mut put_batch = |keys: &[u8], values: &[u8]| {
                progress()?;
                for record in export(&self.exporter, *of, [table.key_size(), table.value_size()], keys, values)? {
                    match put(maps, of & ExportRequest::V6 != 0, record.entry(epoch)) {
                        Ok(is_new) => copied += usize::from(is_new),
                        Err(error) => failed = Some(error),
                    }
                }
                Ok(())
            };
            if let Err(error) = each_batch(table, &mut put_batch) {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "some connections of another version begin anew");
        }
        Ok(copied)
    }
}

/// Calls `each` with the bytes of keys and values of some entries, until it has had them all.
fn each_batch(table: &RawMap, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let mut room = 256;
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; table.cursor_size()];
        let (mut keys, mut values) = (vec![0; room * table.key_size()], vec![0; room * table.value_size()]);
        match table.lookup_batch(cursor.as_deref(), &mut next, &mut keys, &mut values) {
            Ok(Batch { count, last }) => {
                let (keys, values) = (&keys[..count * table.key_size()], &values[..count * table.value_size()]);
                each(keys, values)?;
                if last {
                    return Ok(());
                }
                cursor = Some(next);
            }
            // One hash bucket has more entries than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < table.max_entries() as usize => {
                room *= 2
            }
            Err(error) => return Err(Error::map("of flows", "list another version's")(error)),
        }
    }
}

/// The records of entries.
fn export(
    exporter: &SchedClassifier,
    of: u32,
    [key_size, value_size]: [usize; 2],
    keys: &[u8],
    values: &[u8],
) -> Result<Vec<ConnectionRecord>> {
    let stride = (key_size + value_size).max(ConnectionRecord::SIZE).next_multiple_of(16);
    let most = ((REQUEST - size_of::<ExportRequest>()) / stride).clamp(1, ExportRequest::MOST as usize);
    let (keys, values) = (keys.chunks(most * key_size), values.chunks(most * value_size));
    let mut records = Vec::new();
    for (keys, values) in keys.zip(values) {
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        let request = ExportRequest {
            version: ConnectionRecord::VERSION.into(),
            of,
            count: u32::try_from(entries.len()).unwrap_or(ExportRequest::MOST),
            stride: u32::try_from(stride).unwrap_or(u32::MAX),
        };
        let mut packet = request.as_bytes().to_vec();
        for (key, value) in entries {
            let place = packet.len();
            packet.extend(key);
            packet.extend(value);
            packet.resize(place + stride, 0);
        }
        let answer = ask(exporter, &packet)?;
        let places = answer.get(size_of::<ExportRequest>()..).unwrap_or_default().chunks_exact(stride);
        let read = places.filter_map(|place| Some(ConnectionRecord::read_from_prefix(place).ok()?.0));
        records.extend(read.filter(|record| record.version == ConnectionRecord::VERSION));
    }
    Ok(records)
}

/// Runs the other version's program.
fn ask(exporter: &SchedClassifier, packet: &[u8]) -> Result<Vec<u8>> {
    let mut answer = vec![0; packet.len()];
    let options =
        TestRunOptions { data_in: Some(packet), data_out: Some(&mut answer), repeat: 1, ..TestRunOptions::new() };
    let result = exporter.test_run(options).map_err(failed("run"))?;
    if result.return_value == 0 {
        return Ok(answer);
    }
    let source = format!("it does not know version {} of the record", ConnectionRecord::VERSION).into();
    Err(Error::Program { program: EXPORTER, operation: "run another version's", source })
}

/// Writes an entry, unless the one that is there has had the last packet.
fn put(maps: &Maps, v6: bool, (key, flow): (FlowKey6, Flow)) -> Result<bool> {
    if v6 { put_in(&maps.flows6(), &key, &flow) } else { put_in(&maps.flows4(), &FlowKey4::of(&key), &flow) }
}

fn put_in<K: TableKey>(table: &FlowTable<'_, K>, key: &K, flow: &Flow) -> Result<bool> {
    match table.get(key)? {
        None => table.add(key, flow),
        Some(own) if is_later(flow, &own) => table.insert(key, flow).map(|()| true),
        Some(_) => Ok(false),
    }
}

/// Whether another version's entry has had a later packet than the own one. In the same tick the own one counts if this version's programs
/// have decided on it: every decision stands by a generation of who sends.
fn is_later(theirs: &Flow, own: &Flow) -> bool {
    match theirs.way.last_seen.wrapping_sub(own.way.last_seen).cast_signed() {
        0 => own.way.egress == 0 && theirs != own,
        later => later > 0,
    }
}

fn failed(operation: &'static str) -> impl Fn(ProgramError) -> Error {
    move |error| Error::Program { program: EXPORTER, operation, source: Box::new(error) }
}
