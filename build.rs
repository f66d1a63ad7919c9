//! What the linker is told. Patroni starts this program for each callback and waits for it: what the dynamic loader
//! does before `main` counts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    // The unwinder of the compiler's static library, placed before the standard library's libgcc_s.so, which
    // nothing needs then: one library less to find, map and relocate.
    println!("cargo::rustc-link-lib=dylib=gcc_eh");
    // Relative relocations in 6 kB rather than 550 kB. Debian 12's loader (glibc 2.36) is the first that reads them.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
