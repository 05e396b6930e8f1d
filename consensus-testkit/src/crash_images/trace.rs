//! Parser of the output of `strace -f -xx`: one line per call, or two if calls of other threads come in between.

use std::collections::HashMap;

/// The traced calls: those that the model supports, and those that could bypass it. `?` marks a call that may not exist on
/// this machine.
pub(super) const CALLS: &str = "trace=?open,openat,?creat,close,write,pwrite64,writev,pwritev,?pwritev2,lseek,ftruncate,\
    ?truncate,fallocate,fsync,fdatasync,?rename,renameat,?renameat2,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,?link,linkat,\
    symlinkat,?symlink,dup,?dup2,dup3,fcntl,mmap,?copy_file_range,sendfile,splice,?io_uring_setup";

/// A call, or the start of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) thread: u64,
    pub(super) name: String,
    pub(super) arguments: String,
    /// Result of the call; `None` at the start of a call that overlaps others.
    pub(super) result: Option<i64>,
    /// Whether the call also starts at this line.
    pub(super) whole: bool,
}

impl Call {
    pub(super) fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }

    /// Arguments, separated at commas. Strings are in hexadecimal and contain no commas.
    pub(super) fn fields(&self) -> Vec<&str> {
        self.arguments.split(", ").collect()
    }

    pub(super) fn number(&self, field: usize) -> i64 {
        let field = self.fields().get(field).copied().unwrap_or_default();
        field
            .parse()
            .unwrap_or_else(|_| panic!("{field:?} is not a number in {} ({})", self.name, self.arguments))
    }

    /// All strings among the arguments, decoded.
    pub(super) fn strings(&self) -> Vec<Vec<u8>> {
        self.arguments.split('"').skip(1).step_by(2).map(decode).collect()
    }
}

fn decode(hexadecimal: &str) -> Vec<u8> {
    let byte =
        |digits: &str| u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{digits:?} is no byte"));
    hexadecimal.split("\\x").skip(1).map(byte).collect()
}

/// Returns calls that succeeded and syncs that failed, in the order of their ends, and the starts of calls that overlap
/// others.
pub(super) fn calls(trace: &str) -> impl Iterator<Item = Call> + '_ {
    let mut begun: HashMap<u64, String> = HashMap::new();
    trace.lines().filter_map(move |line| {
        let (thread, rest) = line.split_once(' ')?;
        let (thread, rest) = (thread.parse().ok()?, rest.trim_start());
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, begin.to_owned());
            let (name, arguments) = begin.split_once('(')?;
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            return Some(Call { thread, name, arguments, result: None, whole: false });
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, end) = resumed.split_once(" resumed>")?;
            return ended(thread, &(begun.remove(&thread)? + end), false);
        }
        ended(thread, rest, true)
    })
}

/// Parses a line such as `fsync(5)    = 0`. Returns `None` for lines that are no calls, and for failed calls other than
/// syncs.
fn ended(thread: u64, line: &str, whole: bool) -> Option<Call> {
    let (call, result) = line.rsplit_once(" = ")?;
    let result = result.split(' ').next()?;
    let result = match result.strip_prefix("0x") {
        Some(address) => i64::from_str_radix(address, 16).unwrap_or(0),
        None => result.parse().ok()?,
    };
    let (name, arguments) = call.trim_end().strip_suffix(')')?.split_once('(')?;
    let (name, arguments) = (name.to_owned(), arguments.to_owned());
    let call = Call { thread, name, arguments, result: Some(result), whole };
    (result >= 0 || call.is_sync()).then_some(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_calls_calls_that_overlap_and_failures() {
        let trace = "7 write(3, \"\\x61\\x00\", 2) = 2\n\
                     7 fsync(3 <unfinished ...>\n\
                     8 openat(AT_FDCWD, \"\\x62\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
                     7 <... fsync resumed>)              = 0\n\
                     7 fdatasync(4) = -1 EIO (Input/output error) (INJECTED)\n\
                     8 +++ exited with 0 +++\n";
        let calls: Vec<Call> = calls(trace).collect();
        let names: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.result, call.whole)).collect();
        let syncs = [("fsync", None, false), ("fsync", Some(0), false), ("fdatasync", Some(-1), true)];
        assert_eq!(names[0], ("write", Some(2), true));
        assert_eq!(names[1..], syncs);
        assert_eq!(calls[0].strings(), [b"a\0"]);
        assert_eq!((calls[0].number(0), calls[2].number(0)), (3, 3));
    }
}
