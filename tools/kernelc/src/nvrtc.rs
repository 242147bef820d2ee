//! NVRTC through dlopen: no build-time dependency on CUDA.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use crate::tree::File;

#[link(name = "dl")]
unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

type Program = *mut c_void;

/// The loaded library. It is never unloaded: NVRTC starts threads that outlive a program.
pub struct Nvrtc {
    pub version: String,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nvrtc {
    /// Loads `library` and, before it, the builtins library that lies beside it: NVRTC looks
    /// that one up by name alone and would miss it outside the system's search path.
    // The fields' types are the annotations.
    #[allow(clippy::missing_transmute_annotations)]
    pub fn load(library: &Path) -> Result<Nvrtc, String> {
        let beside = library.parent().unwrap_or(Path::new("."));
        if let Ok(entries) = std::fs::read_dir(beside) {
            for path in entries.filter_map(|e| e.ok().map(|e| e.path())) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if name.starts_with("libnvrtc-builtins.so") && !name.contains(".alt") {
                    open(&path)?;
                }
            }
        }
        let handle = open(library)?;
        // SAFETY: the signatures are those of nvrtc.h 12.x and the handle is never closed.
        let mut nvrtc = unsafe {
            Nvrtc {
                version: String::new(),
                create: std::mem::transmute(symbol(handle, c"nvrtcCreateProgram")?),
                compile: std::mem::transmute(symbol(handle, c"nvrtcCompileProgram")?),
                destroy: std::mem::transmute(symbol(handle, c"nvrtcDestroyProgram")?),
                log_size: std::mem::transmute(symbol(handle, c"nvrtcGetProgramLogSize")?),
                log: std::mem::transmute(symbol(handle, c"nvrtcGetProgramLog")?),
                ptx_size: std::mem::transmute(symbol(handle, c"nvrtcGetPTXSize")?),
                ptx: std::mem::transmute(symbol(handle, c"nvrtcGetPTX")?),
                error: std::mem::transmute(symbol(handle, c"nvrtcGetErrorString")?),
            }
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two out-pointers to live integers, as nvrtcVersion asks.
        let status = unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                std::mem::transmute(symbol(handle, c"nvrtcVersion")?);
            version(&mut major, &mut minor)
        };
        nvrtc.expect("nvrtcVersion", status)?;
        nvrtc.version = format!("{major}.{minor}");
        Ok(nvrtc)
    }

    /// PTX of `text` for `arch`; the compiler's log is the error.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[File],
        arch: &str,
    ) -> Result<String, String> {
        let (source, name_c) = (c_string(text)?, c_string(name)?);
        let names = headers.iter().map(|h| c_string(&h.name)).collect::<Result<Vec<_>, _>>()?;
        let bodies = headers.iter().map(|h| c_string(&h.text)).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<*const c_char> = names.iter().map(|c| c.as_ptr()).collect();
        let bodies: Vec<*const c_char> = bodies.iter().map(|c| c.as_ptr()).collect();
        let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into()];
        let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|c| c.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: every pointer is to a NUL-terminated string or array that outlives the call,
        // and the counts are the arrays' lengths.
        unsafe {
            let n = headers.len() as c_int;
            let status = (self.create)(
                &mut program,
                source.as_ptr(),
                name_c.as_ptr(),
                n,
                bodies.as_ptr(),
                names.as_ptr(),
            );
            self.expect("nvrtcCreateProgram", status)?;
            let status = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let result = if status == 0 {
                self.text(program, self.ptx_size, self.ptx)
            } else {
                let log = self.text(program, self.log_size, self.log).unwrap_or_default();
                Err(format!("{name} for {arch}: {}\n{log}", self.describe(status)))
            };
            (self.destroy)(&mut program);
            result
        }
    }

    fn text(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<String, String> {
        let mut bytes = 0usize;
        // SAFETY: the buffer has the size NVRTC reported for this program.
        unsafe {
            self.expect("nvrtc size query", size(program, &mut bytes))?;
            let mut buffer = vec![0u8; bytes.max(1)];
            self.expect("nvrtc read", fill(program, buffer.as_mut_ptr().cast()))?;
            let text = CStr::from_bytes_until_nul(&buffer).map_err(|e| e.to_string())?;
            Ok(text.to_string_lossy().into_owned())
        }
    }

    fn expect(&self, what: &str, status: c_int) -> Result<(), String> {
        if status == 0 { Ok(()) } else { Err(format!("{what}: {}", self.describe(status))) }
    }

    fn describe(&self, status: c_int) -> String {
        // SAFETY: nvrtcGetErrorString returns a static string for every code.
        unsafe { CStr::from_ptr((self.error)(status)) }.to_string_lossy().into_owned()
    }
}

fn open(path: &Path) -> Result<*mut c_void, String> {
    let file = c_string(&path.to_string_lossy())?;
    // SAFETY: dlopen and dlerror take and return NUL-terminated strings; the library's
    // initializers are trusted as part of the pinned wheel.
    unsafe {
        let handle = dlopen(file.as_ptr(), RTLD_NOW | RTLD_GLOBAL);
        if handle.is_null() {
            return Err(CStr::from_ptr(dlerror()).to_string_lossy().into_owned());
        }
        Ok(handle)
    }
}

fn symbol(handle: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the handle comes from dlopen and the name is NUL-terminated.
    let address = unsafe { dlsym(handle, name.as_ptr()) };
    if address.is_null() {
        return Err(format!("libnvrtc has no symbol {}", name.to_string_lossy()));
    }
    Ok(address)
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "text with a NUL byte".to_string())
}
