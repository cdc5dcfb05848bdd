//! Which device a target gets, and what the answer rests on.

use super::{ground::Places, *};
use crate::build::graph::tests::{cpu, gpu};
use std::{cell::Cell, ffi::OsString, fs, os::unix::fs::symlink, path::PathBuf};

fn adapter(name: &str, kind: GpuKind) -> GpuFacts {
    GpuFacts { name: name.to_owned(), kind, ..gpu() }
}

fn machine() -> Vec<GpuFacts> {
    vec![
        adapter("llvmpipe (LLVM 15.0.6, 256 bits)", GpuKind::Software),
        adapter("Intel(R) UHD Graphics 770", GpuKind::Integrated),
        adapter("NVIDIA H200", GpuKind::Discrete),
        adapter("NVIDIA H100 80GB HBM3", GpuKind::Discrete),
    ]
}

fn chosen(pattern: &str) -> Option<String> {
    choose(&machine(), pattern).map(|it| it.name.clone())
}

#[test]
fn a_real_gpu_is_taken_before_a_software_one_and_a_discrete_one_before_an_integrated_one() {
    assert_eq!(chosen("*").as_deref(), Some("NVIDIA H200"));
    assert_eq!(chosen("*intel*").as_deref(), Some("Intel(R) UHD Graphics 770"));
    assert_eq!(chosen("*h100*").as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!(chosen("LLVMPIPE*").as_deref(), Some("llvmpipe (LLVM 15.0.6, 256 bits)"));
    assert_eq!(chosen("H200"), None);
    let software = &machine()[..1];
    assert_eq!(choose(software, "*").map(|it| it.kind), Some(GpuKind::Software));
}

#[test]
fn of_equal_gpus_the_drivers_first_is_taken() {
    let two = [adapter("A", GpuKind::Discrete), adapter("A", GpuKind::Discrete)];
    assert!(std::ptr::eq(choose(&two, "*").unwrap(), &raw const two[0]));
}

fn target(adapter: &str) -> Target {
    let backend = Backend::Gpu { adapter: adapter.to_owned(), hybrid_softmax: false };
    Target { name: "gpu".to_owned(), backend }
}

fn told(error: &DeviceError) -> String {
    let (detail, hint) = (error.detail(), error.hint().unwrap_or_default());
    [error.to_string(), detail, format!("hint: {hint}")]
        .into_iter()
        .filter(|it| !it.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_machine_without_a_gpu_says_what_to_install() {
    let problems = vec!["Vulkan: no library libvulkan.so.1".to_owned()];
    let finder = Finder::new(cpu(), || Ok(Gpus { found: Vec::new(), problems: problems.clone() }));
    insta::assert_snapshot!(told(&finder.device(&target("*")).unwrap_err()), @r"
    target `gpu` needs a GPU, and there is none that kernels can run on
    Vulkan: no library libvulkan.so.1
    hint: install the GPU's Vulkan driver, or a software GPU, which is right for tests and slow: the packages libvulkan1 and mesa-vulkan-drivers of Debian and Ubuntu; `kforge doctor` says more
    ");
}

#[test]
fn a_pattern_that_matches_no_gpu_lists_those_there_are() {
    let finder = Finder::new(cpu(), || Ok(Gpus { found: machine(), problems: Vec::new() }));
    insta::assert_snapshot!(told(&finder.device(&target("*mi300*")).unwrap_err()), @r"
    no GPU has a name that matches `*mi300*`, the `adapter` of target `gpu`: there are `llvmpipe (LLVM 15.0.6, 256 bits) (software)`, `Intel(R) UHD Graphics 770`, `NVIDIA H200`, `NVIDIA H100 80GB HBM3`
    hint: change `adapter` in `[target.gpu]`; `kforge doctor` says what each GPU can do
    ");
}

#[test]
fn a_missing_worker_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let program = Some(folder.path().join("kforge-worker"));
    let toolchain = Toolchain { program, store: folder.path().to_owned(), allow_faults: false };
    let cas = Cas::open(folder.path()).unwrap();
    let finder = Finder::new(cpu(), || probe(&toolchain, &Leash::default(), &cas));
    let error = finder.device(&target("*")).unwrap_err();
    assert!(matches!(error, DeviceError::Worker(WorkerError::Absent(_))), "{error}");
    assert!(error.hint().unwrap().contains("KFORGE_WORKER"));
}

#[test]
fn gpus_are_looked_for_once_and_only_for_a_target_that_needs_one() {
    let probes = Cell::new(0);
    let finder = Finder::new(cpu(), || {
        probes.set(probes.get() + 1);
        Ok(Gpus { found: machine(), problems: Vec::new() })
    });
    let host = Target { name: "cpu".to_owned(), backend: Backend::Cpu { threads: 1 } };
    assert_eq!(*finder.device(&host).unwrap(), cpu().into());
    assert_eq!(probes.get(), 0);
    let first = finder.device(&target("*")).unwrap();
    assert!(Arc::ptr_eq(&first, &finder.device(&target("*")).unwrap()));
    let other = Target { name: "other".to_owned(), ..target("*h100*") };
    assert_eq!(finder.device(&other).unwrap().name(), "NVIDIA H100 80GB HBM3");
    assert_eq!(probes.get(), 1);
}

/// A machine in a folder: one driver, its library, the loader, a device file's folder.
struct Machine {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() };
        machine.write("usr/share/vulkan/icd.d/lvp.json", r#"{"ICD": {"library_path": "libvulkan_lvp.so"}}"#);
        machine.write("usr/lib64/libvulkan_lvp.so", "a driver");
        machine.write("usr/lib64/libvulkan.so.1", "the loader");
        machine.write("proc/sys/kernel/osrelease", "6.1");
        machine.write("dev/dri/card0", "");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), content).unwrap();
    }

    fn ground(&self) -> Digest {
        let variable = |name: &str| self.variables.iter().find(|it| it.0 == name).map(|it| OsString::from(&it.1));
        let variables = self.variables.iter().map(|it| (it.0.to_owned(), OsString::from(&it.1))).collect();
        Ground::of(&Places { root: self.folder.path(), variable: &variable, variables }).digest()
    }

    /// Whether `edit` leads to another ground.
    fn shows(edit: impl FnOnce(&mut Self)) -> bool {
        let mut machine = Self::new();
        let before = machine.ground();
        assert_eq!(machine.ground(), before);
        edit(&mut machine);
        machine.ground() != before
    }
}

#[test]
fn whatever_may_change_which_gpus_there_are_shows() {
    let set = |name, value: &str| {
        let value = value.to_owned();
        move |it: &mut Machine| it.variables.push((name, value))
    };
    let driver = r#"{"ICD": {"library_path": "/opt/driver.so"}}"#;
    assert!(Machine::shows(|it| it.write("usr/share/vulkan/icd.d/lvp.json", driver)), "a driver's manifest");
    assert!(Machine::shows(|it| it.write("etc/vulkan/icd.d/nvidia_icd.json", driver)), "a new driver");
    assert!(
        Machine::shows(|it| fs::remove_file(it.path("usr/share/vulkan/icd.d/lvp.json")).unwrap()),
        "a driver that went"
    );
    assert!(Machine::shows(|it| it.write("usr/lib64/libvulkan_lvp.so", "another driver")), "its library");
    assert!(Machine::shows(|it| it.write("usr/lib/libvulkan_lvp.so", "another driver")), "its library elsewhere");
    assert!(Machine::shows(|it| fs::remove_file(it.path("usr/lib64/libvulkan.so.1")).unwrap()), "no loader");
    assert!(Machine::shows(|it| it.write("proc/driver/nvidia/version", "580")), "a kernel module");
    assert!(Machine::shows(|it| it.write("proc/sys/kernel/osrelease", "6.2")), "the kernel");
    assert!(Machine::shows(|it| it.write("dev/dri/card1", "")), "a device file");
    assert!(Machine::shows(|it| it.write("dev/nvidia0", "")), "NVIDIA's device file");
    assert!(Machine::shows(set("VK_DRIVER_FILES", "/nowhere.json")), "a variable of the loader");
    assert!(Machine::shows(set("CUDA_VISIBLE_DEVICES", "1")), "a variable of a driver");
    assert!(!Machine::shows(set("EDITOR", "ed")), "a variable that nobody asks");
    assert!(!Machine::shows(|it| it.write("usr/share/vulkan/explicit", "")), "another file");
}

#[test]
fn a_library_beside_its_manifest_and_manifests_named_by_a_variable_are_looked_at() {
    let named = || {
        let mut machine = Machine::new();
        machine.write("home/own.json", r#"{"ICD": {"library_path": "./own.so"}}"#);
        machine.write("home/own.so", "mine");
        let path = machine.path("home/own.json").display().to_string();
        machine.variables.push(("VK_ICD_FILENAMES", path));
        machine
    };
    let machine = named();
    let before = machine.ground();
    machine.write("home/own.so", "mine, again");
    assert_ne!(machine.ground(), before);
    // The folders are not looked into then.
    let before = machine.ground();
    machine.write("usr/share/vulkan/icd.d/more.json", "{}");
    assert_eq!(machine.ground(), before);
}

#[test]
fn a_driver_behind_a_link_is_looked_at() {
    let machine = Machine::new();
    machine.write("elsewhere/driver.so", "one");
    fs::remove_file(machine.path("usr/lib64/libvulkan_lvp.so")).unwrap();
    symlink(machine.path("elsewhere/driver.so"), machine.path("usr/lib64/libvulkan_lvp.so")).unwrap();
    let before = machine.ground();
    machine.write("elsewhere/driver.so", "another");
    assert_ne!(machine.ground(), before);
}

#[test]
fn a_ground_that_just_changed_is_not_relied_on() {
    let machine = Machine::new();
    let places = Places { root: machine.folder.path(), variable: &|_| None, variables: Vec::new() };
    let now = SystemTime::now();
    assert!(!Ground::of(&places).lasts(now));
    assert!(Ground::of(&places).lasts(now + std::time::Duration::from_secs(1)));
}

#[test]
fn looking_takes_no_time_that_a_build_would_notice() {
    let start = std::time::Instant::now();
    (0..10).for_each(|_| drop(Ground::now()));
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed() / 10);
}
