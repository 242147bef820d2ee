//! The memory of this machine and of this process, where the system tells: what is free, what the
//! control groups of a container allow, and what the limits of the process leave.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// How much new allocations can have, and what sets the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// The limit in words, for example `memory.max of the control group /job`.
    pub limit: String,
}

impl Room {
    /// The least that the machine, the control groups (v1 and v2) above this process and its resource
    /// limits leave. What can be reclaimed from the file cache counts as free.
    pub fn now() -> Option<Room> {
        Room::under(Path::new("/"))
    }

    /// What [`Room::now`] says, read from the system's files under `root`.
    pub fn under(root: &Path) -> Option<Room> {
        let machine = kib(&root.join("proc/meminfo"), "MemAvailable:");
        let machine =
            machine.map(|bytes| Room { bytes, limit: "what the machine has free".into() });
        let all = machine.into_iter().chain(groups(root)).chain(resources(root));
        all.min_by_key(|room| room.bytes)
    }
}

/// Bytes that new allocations can have without swapping; see [`Room::now`].
pub fn available_memory() -> Option<u64> {
    Room::now().map(|room| room.bytes)
}

/// Bytes of memory in all.
pub fn total_memory() -> Option<u64> {
    kib(Path::new("/proc/meminfo"), "MemTotal:")
}

/// Most bytes this process has held at once.
pub fn peak_memory() -> Option<u64> {
    kib(Path::new("/proc/self/status"), "VmHWM:")
}

/// The number of KiB behind `key`, in bytes.
fn kib(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// What `setrlimit` leaves: the soft limit less what the process has already.
fn resources(root: &Path) -> Vec<Room> {
    let (limits, status) = (root.join("proc/self/limits"), root.join("proc/self/status"));
    let text = fs::read_to_string(limits).unwrap_or_default();
    let left = |(name, used, what): (&str, &str, &str)| {
        let limit = text.lines().find_map(|line| line.strip_prefix(name))?;
        let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
        let bytes = limit.saturating_sub(kib(&status, used)?);
        Some(Room { bytes, limit: format!("the process's limit of {what} (ulimit)") })
    };
    let each = [
        ("Max address space", "VmSize:", "address space, RLIMIT_AS"),
        ("Max data size", "VmData:", "data, RLIMIT_DATA"),
    ];
    each.into_iter().filter_map(left).collect()
}

/// The two generations of control groups.
#[derive(Clone, Copy, PartialEq)]
enum Version {
    V1,
    V2,
}

/// What each control group above this process leaves.
fn groups(root: &Path) -> Vec<Room> {
    let mounts = fs::read(root.join("proc/self/mountinfo")).unwrap_or_default();
    let member = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut rooms = Vec::new();
    for line in mounts.split(|&byte| byte == b'\n') {
        let Some(mount) = Mount::parse(line) else { continue };
        let Some(path) = group_of(&member, mount.version) else { continue };
        // A container sees its own group as the root of the mount.
        let inside = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let plain = inside.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let inside = if plain { inside } else { Path::new("") };
        let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
        for level in inside.ancestors() {
            let shown = Path::new("/").join(level);
            rooms.extend(group(&top.join(level), &shown, mount.version));
        }
    }
    rooms
}

/// A mounted hierarchy that may limit memory.
struct Mount {
    version: Version,
    /// The group that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

impl Mount {
    /// A line of mountinfo: `id parent device root point options [tags] - type source options`.
    fn parse(line: &[u8]) -> Option<Mount> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = fields.iter().position(|&field| field == b"-")?;
        let has_memory = || {
            let options = fields.get(dash + 3)?;
            options.split(|&byte| byte == b',').find(|&option| option == b"memory")
        };
        let version = match *fields.get(dash + 1)? {
            b"cgroup2" => Version::V2,
            b"cgroup" if has_memory().is_some() => Version::V1,
            _ => return None,
        };
        Some(Mount { version, root: path(fields.get(3)?), point: path(fields.get(4)?) })
    }
}

/// A path of mountinfo, in which a blank is `\040`.
fn path(text: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    #[cfg(unix)]
    let text: OsString = std::os::unix::ffi::OsStringExt::from_vec(bytes);
    #[cfg(not(unix))]
    let text: OsString = String::from_utf8_lossy(&bytes).into_owned().into();
    text.into()
}

/// This process's group: of `ID:CONTROLLERS:PATH` the line of the memory controller, or the one
/// without controllers.
fn group_of(member: &str, version: Version) -> Option<&str> {
    member.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match version {
            Version::V1 => controllers.split(',').any(|name| name == "memory"),
            Version::V2 => id == "0" && controllers.is_empty(),
        };
        ours.then_some(path)
    })
}

/// What the limits of one group leave. Above `memory.high` a process is slowed down to a standstill,
/// so it counts as a limit.
fn group(folder: &Path, name: &Path, version: Version) -> Vec<Room> {
    let text = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let stat = text("memory.stat").unwrap_or_default();
    let stat = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
        line.trim().parse::<u64>().ok()
    };
    let (usage, cache, limits) = match version {
        Version::V1 => (
            number("memory.usage_in_bytes"),
            ["total_inactive_file", "total_active_file"].map(stat),
            vec![
                ("memory.limit_in_bytes", number("memory.limit_in_bytes")),
                // Also of groups that a container does not see.
                ("hierarchical_memory_limit", stat("hierarchical_memory_limit")),
            ],
        ),
        Version::V2 => (
            number("memory.current"),
            ["inactive_file", "active_file"].map(stat),
            vec![("memory.max", number("memory.max")), ("memory.high", number("memory.high"))],
        ),
    };
    let cache: u64 = cache.into_iter().flatten().sum();
    let used = usage.unwrap_or(0).saturating_sub(cache);
    // Without a limit version 1 holds the largest number of pages.
    let given = limits.into_iter().filter_map(|(file, limit)| Some((file, limit?)));
    given
        .filter(|(_, limit)| *limit < 1 << 60)
        .map(|(file, limit)| Room {
            bytes: limit.saturating_sub(used),
            limit: format!("{file} of the control group {}", name.display()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A system with 8 GiB free and these further files.
    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, Room) {
        let root = tempfile::tempdir().unwrap();
        let free = ("proc/meminfo", "MemTotal:  16777216 kB\nMemAvailable:    8388608 kB\n");
        for (name, text) in [free].iter().chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let room = Room::under(root.path()).unwrap();
        (root, room)
    }

    fn mib(room: &Room) -> u64 {
        room.bytes / MIB
    }

    const V2: (&str, &str) = (
        "proc/self/mountinfo",
        "25 30 0:23 / /sys rw - sysfs sysfs rw\n35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n",
    );
    const IN_JOB: (&str, &str) = ("proc/self/cgroup", "0::/slice/job\n");

    #[test]
    fn without_limits_the_machine_has_what_it_has() {
        let (_, room) = system(&[]);
        assert_eq!((mib(&room), &*room.limit), (8192, "what the machine has free"));
        assert!(Room::under(Path::new("/nowhere")).is_none());
        let unlimited = [V2, IN_JOB, ("sys/fs/cgroup/slice/job/memory.max", "max\n")];
        assert_eq!(mib(&system(&unlimited).1), 8192);
    }

    #[test]
    fn control_groups_of_version_2_limit_with_all_that_is_above() {
        let job = |name: &str| format!("sys/fs/cgroup/slice/job/{name}");
        let own = [
            V2,
            IN_JOB,
            (&job("memory.max"), "314572800\n"),
            (&job("memory.high"), "max\n"),
            (&job("memory.current"), "209715200\n"),
            (
                &job("memory.stat"),
                "anon 1\nfile 9\ninactive_file 104857600\nactive_file 52428800\n",
            ),
        ];
        // 300 MiB, of which 200 are used, but 150 of these are cache.
        let (_, room) = system(&own);
        assert_eq!(mib(&room), 250);
        assert_eq!(room.limit, "memory.max of the control group /slice/job");

        let high = job("memory.high");
        let (_, room) = system(&[&own[..], &[(&*high, "104857600\n")]].concat());
        assert_eq!(mib(&room), 50);
        assert!(room.limit.starts_with("memory.high"), "{}", room.limit);

        let parent = [
            ("sys/fs/cgroup/slice/memory.max", "524288000\n"),
            ("sys/fs/cgroup/slice/memory.current", "492830720\n"),
        ];
        let (_, room) = system(&[&own[..], &parent].concat());
        assert_eq!(mib(&room), 30, "neighbors in the parent have used the rest");
        assert_eq!(room.limit, "memory.max of the control group /slice");
    }

    /// A container with a namespace of its own sees its group as the root.
    #[test]
    fn containers_see_their_group_as_the_root() {
        let limit = ("sys/fs/cgroup/memory.max", "314572800");
        for path in ["0::/\n", "0::/../other\n", "0::/docker/abc\n"] {
            let (_, room) = system(&[V2, ("proc/self/cgroup", path), limit]);
            assert_eq!(mib(&room), 300, "{path}");
        }
        // Version 1: the group itself is mounted, under a name with a blank.
        let mounts =
            "40 35 0:31 /docker/abc /sys/fs/cg\\040roup/memory rw - cgroup cgroup rw,memory\n";
        let (_, room) = system(&[
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/docker/abc\n1:name=systemd:/y\n"),
            ("sys/fs/cg roup/memory/memory.limit_in_bytes", "314572800\n"),
            ("sys/fs/cg roup/memory/memory.usage_in_bytes", "104857600\n"),
            (
                "sys/fs/cg roup/memory/memory.stat",
                "inactive_file 9\ntotal_inactive_file 52428800\n",
            ),
        ]);
        assert_eq!(
            (mib(&room), &*room.limit),
            (250, "memory.limit_in_bytes of the control group /")
        );
    }

    #[test]
    fn control_groups_of_version_1_limit_also_from_outside_the_container() {
        let mounts = "40 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 35 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let member = ("proc/self/cgroup", "4:memory:/job\n3:cpu:/\n");
        let file = |name: &str| format!("sys/fs/cgroup/memory/job/{name}");
        let (_, room) = system(&[
            ("proc/self/mountinfo", mounts),
            member,
            (&file("memory.limit_in_bytes"), "9223372036854771712\n"),
            (&file("memory.usage_in_bytes"), "10485760\n"),
            (&file("memory.stat"), "hierarchical_memory_limit 209715200\n"),
        ]);
        assert_eq!(mib(&room), 190);
        assert!(room.limit.starts_with("hierarchical_memory_limit"), "{}", room.limit);
    }

    #[test]
    fn resource_limits_leave_what_the_process_has_not_taken() {
        let limits = |address: &str, data: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max data size             {data:20} unlimited            bytes     \n\
                 Max address space         {address:20} unlimited            bytes     \n"
            )
        };
        let status =
            ("proc/self/status", "VmPeak:  900000 kB\nVmSize:   102400 kB\nVmData:  51200 kB\n");
        for (address, data, left, word) in [
            ("314572800", "unlimited", 200, "RLIMIT_AS"),
            ("unlimited", "314572800", 250, "RLIMIT_DATA"),
            ("1048576", "314572800", 0, "RLIMIT_AS"),
            ("unlimited", "unlimited", 8192, "machine"),
        ] {
            let (_, room) = system(&[("proc/self/limits", &limits(address, data)), status]);
            assert_eq!(mib(&room), left);
            assert!(room.limit.contains(word), "{}", room.limit);
        }
    }

    #[test]
    fn this_process_has_some_room() {
        if cfg!(target_os = "linux") {
            let room = Room::now().unwrap();
            assert!(room.bytes > 0 && total_memory().unwrap() >= peak_memory().unwrap());
        }
    }
}
