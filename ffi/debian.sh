#!/usr/bin/env bash
# The Debian packages libgradus-cSERIES (the shared library) and libgradus-dev (headers, static library, pkg-config,
# CMake), in target/deb. Called by `make -C ffi deb`.
#
#   ffi/debian.sh VERSION SERIES [FOLDER of libgradus_c.a]
set -euo pipefail
version=$1 series=$2 libraries=${3:-}
cd "$(dirname "$0")"
out=$PWD/../target/deb
architecture=$(dpkg --print-architecture)
triplet=$(${CC:-cc} -print-multiarch)
rm -rf "$out"
mkdir -p "$out/all"
make -s install DESTDIR="$out/all" PREFIX=/usr LIBDIR="lib/$triplet" GRADUS_LIB_DIR="$libraries"

runtime=libgradus-c$series
mkdir -p "$out/$runtime/usr/lib/$triplet"
mv "$out/all/usr/lib/$triplet"/libgradus_c.so.* "$out/$runtime/usr/lib/$triplet/"
mv "$out/all" "$out/libgradus-dev"
# The newest symbol version of the C library that is asked for.
libc=$(readelf -V "$out/$runtime/usr/lib/$triplet/libgradus_c.so.$series" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)

control() { # package, section, depends, short description, long description
  local folder=$out/$1
  mkdir -p "$folder/DEBIAN" "$folder/usr/share/doc/$1"
  {
    echo 'Files: *'
    echo 'License: MIT or Apache-2.0'
    echo
    cat ../LICENSE-MIT
    echo
    echo 'Apache-2.0: /usr/share/common-licenses/Apache-2.0'
  } > "$folder/usr/share/doc/$1/copyright"
  printf '%s\n' "Package: $1" "Version: $version" "Architecture: $architecture" "Multi-Arch: same" "Section: $2" \
    "Priority: optional" "Maintainer: the authors of gradus <none@localhost>" \
    "Installed-Size: $(du -sk "$folder" | cut -f1)" "Depends: $3" "Description: $4" " $5" > "$folder/DEBIAN/control"
}
control "$runtime" libs "libc6 (>= ${libc#GLIBC_}), libgcc-s1" "kernels for reinforcement fine-tuning (shared library)" \
  "The C library of gradus. A GPU needs the NVIDIA driver; without one the CPU computes."
printf 'activate-noawait ldconfig\n' > "$out/$runtime/DEBIAN/triggers"
control libgradus-dev libdevel "$runtime (= $version)" "kernels for reinforcement fine-tuning (development)" \
  "Headers, static library, pkg-config and CMake files of the C library of gradus."
for package in "$runtime" libgradus-dev; do
  dpkg-deb --root-owner-group -Zxz --build "$out/$package" "$out" | sed 's/^dpkg-deb: //'
done
ls -l "$out"/*.deb | awk '{print $5, $9}'
