//! What the list of GPUs rests on, as far as looking at files tells: the drivers that the Vulkan loader would find, the kernel and
//! the device files, and the variables that change what either says. Taken in well under a millisecond. Anything that differs
//! leads to a new probe; that a GPU goes and leaves all of this as it was is noticed by the worker that is asked to use it.

use crate::{digest::Digest, facts::Facts};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// One line for everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    lines: Vec<String>,
    /// Of the files: to tell what changed just before it was looked at.
    facts: Vec<Facts>,
}

/// Where to look: the machine, or a folder that a test made.
pub struct Places<'a> {
    /// Put before every absolute path.
    pub root: &'a Path,
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    pub variables: Vec<(String, OsString)>,
}

/// Variables that the Vulkan loader, Mesa's and NVIDIA's drivers and wgpu read begin with one of these.
const PREFIXES: [&str; 13] = [
    "VK_", "MESA_", "LIBGL_", "LP_", "GALLIUM_", "WGPU_", "DRI_", "CUDA_", "NVIDIA_", "__NV", "__GLX_", "AMD_", "RADV_",
];
const NAMES: [&str; 4] =
    ["LD_LIBRARY_PATH", "XDG_DATA_DIRS", "DISABLE_LAYER_AMD_SWITCHABLE_GRAPHICS_1", "ENABLE_DEVICE_CHOOSER_LAYER"];

/// Files of a line or two that say which kernel and which kernel module there are; they have no lasting facts.
const TEXTS: [&str; 3] = ["/proc/sys/kernel/osrelease", "/proc/driver/nvidia/version", "/sys/module/nvidia/version"];

/// Where loaders look for libraries, beside `LD_LIBRARY_PATH`.
fn libraries() -> [String; 6] {
    let own = format!("{}-linux-gnu", env::consts::ARCH);
    [
        format!("/usr/lib/{own}"),
        format!("/lib/{own}"),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
        "/usr/local/lib".to_owned(),
        "/opt/lib".to_owned(),
    ]
}

impl Ground {
    /// Of this machine and process.
    pub fn now() -> Self {
        let variables = env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Self::of(&Places { root: Path::new("/"), variable: &|name| env::var_os(name), variables })
    }

    pub fn of(places: &Places<'_>) -> Self {
        let mut ground = Self::default();
        for (name, value) in places.variables.iter().collect::<BTreeSet<_>>() {
            if PREFIXES.iter().any(|it| name.starts_with(it)) || NAMES.contains(&name.as_str()) {
                ground.lines.push(format!("{name}={value:?}"));
            }
        }
        for text in TEXTS {
            let content = fs::read(places.path(text)).unwrap_or_default();
            ground.lines.push(format!("{text}: {}", Digest::of(&content)));
        }
        ground.devices(&places.path("/dev"), "nvidia");
        ground.devices(&places.path("/dev/dri"), "");
        let folders = places.library_folders();
        // The loader itself, and the list of libraries, which changes when one is installed.
        ground.file(&places.path("/etc/ld.so.cache"));
        folders.iter().for_each(|it| ground.file(&it.join("libvulkan.so.1")));
        for manifest in ground.manifests(places) {
            ground.file(&manifest);
            match library(&manifest) {
                Some(name) if name.contains('/') => {
                    ground.file(&manifest.parent().unwrap_or(Path::new("/")).join(name));
                }
                Some(name) => folders.iter().for_each(|it| ground.file(&it.join(&name))),
                None => {}
            }
        }
        ground
    }

    /// The manifests of drivers in the folders that the loader looks into, or those that a variable names instead.
    fn manifests(&mut self, places: &Places<'_>) -> Vec<PathBuf> {
        let split = |name: &str| (places.variable)(name).map(|it| env::split_paths(&it).collect::<Vec<_>>());
        // The loader's documentation: the newer name wins, and either replaces the folders.
        let named = split("VK_DRIVER_FILES").or_else(|| split("VK_ICD_FILENAMES"));
        let mut sources = named.unwrap_or_else(|| places.driver_folders());
        sources.extend(split("VK_ADD_DRIVER_FILES").unwrap_or_default());
        // A layer may hide or reorder GPUs.
        sources.extend(places.data_folders().into_iter().map(|it| it.join("vulkan/implicit_layer.d")));
        let mut manifests = Vec::new();
        for source in sources {
            if !source.is_dir() {
                manifests.push(source);
                continue;
            }
            self.file(&source);
            let entries = fs::read_dir(&source).into_iter().flatten().filter_map(|it| Some(it.ok()?.path()));
            let mut entries: Vec<_> = entries.filter(|it| it.extension().is_some_and(|it| it == "json")).collect();
            entries.sort();
            manifests.extend(entries);
        }
        manifests
    }

    fn file(&mut self, path: &Path) {
        let facts = Facts::at(path);
        self.lines.push(format!("{}: {facts:?}", path.display()));
        self.facts.extend(facts);
    }

    /// Names and numbers of the device files in a folder: drivers touch the files themselves.
    fn devices(&mut self, folder: &Path, prefix: &str) {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let entries = entries.filter(|it| it.file_name().to_string_lossy().starts_with(prefix));
        let mut lines: Vec<_> = entries
            .map(|it| {
                let number = fs::metadata(it.path()).map_or(0, |it| it.rdev());
                format!("{}: device {number}", it.path().display())
            })
            .collect();
        lines.sort();
        self.lines.append(&mut lines);
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.lines.join("\n").as_bytes())
    }

    /// Whether an equal ground later means that nothing changed; `start` is a time before it was taken.
    pub fn lasts(&self, start: SystemTime) -> bool {
        self.facts.iter().all(|it| it.lasting(start).is_some())
    }
}

impl Places<'_> {
    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The paths of a variable, or its default under the root.
    fn folders(&self, name: &str, default: &[&str]) -> Vec<PathBuf> {
        match (self.variable)(name).filter(|it| !it.is_empty()) {
            Some(value) => env::split_paths(&value).collect(),
            None => default.iter().map(|it| self.path(it)).collect(),
        }
    }

    fn home(&self, below: &str) -> Vec<PathBuf> {
        (self.variable)("HOME").map(|it| PathBuf::from(it).join(below)).into_iter().collect()
    }

    fn data_folders(&self) -> Vec<PathBuf> {
        let mut folders = match (self.variable)("XDG_DATA_HOME").filter(|it| !it.is_empty()) {
            Some(folder) => vec![PathBuf::from(folder)],
            None => self.home(".local/share"),
        };
        folders.extend(self.folders("XDG_DATA_DIRS", &["/usr/local/share", "/usr/share"]));
        folders.extend(["/etc", "/usr/local/etc"].map(|it| self.path(it)));
        folders
    }

    /// <https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderDriverInterface.md#driver-discovery-on-linux>
    fn driver_folders(&self) -> Vec<PathBuf> {
        let mut folders = self.folders("XDG_CONFIG_HOME", &[]);
        folders.extend(self.home(".config"));
        folders.extend(self.folders("XDG_CONFIG_DIRS", &["/etc/xdg"]));
        folders.extend(self.data_folders());
        folders.into_iter().map(|it| it.join("vulkan/icd.d")).collect()
    }

    fn library_folders(&self) -> Vec<PathBuf> {
        let mut folders = self.folders("LD_LIBRARY_PATH", &[]);
        folders.extend(libraries().iter().map(|it| self.path(it)));
        folders
    }
}

/// The library that a driver's manifest names: a path, from the manifest if it is relative, or a name for the loader to find.
fn library(manifest: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "ICD")]
        driver: Driver,
    }
    #[derive(Deserialize)]
    struct Driver {
        library_path: String,
    }
    Some(serde_json::from_slice::<Manifest>(&fs::read(manifest).ok()?).ok()?.driver.library_path)
}
