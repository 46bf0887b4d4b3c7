import { VirtkitError } from "../../../common/error.ts";
import { type AptPackage, type PrivateApt, readRelease } from "./apt.ts";

/** What a distribution calls the parts of a guest for one architecture. */
interface GuestRecipe {
  /** Kernel flavours by preference; each has a metapackage linux-image-FLAVOUR. */
  readonly flavours: readonly string[];
  readonly others: readonly string[];
  /** Left out, with what they need, when the release lacks them. */
  readonly optional: readonly string[];
}

const RECIPES: Readonly<Record<string, GuestRecipe>> = {
  i386: { flavours: ["686", "686-pae"], others: ["busybox-static", "seabios"], optional: ["e2fsprogs"] },
};

/** The architectures a guest can be prepared for. */
export const GUEST_ARCHITECTURES: readonly string[] = Object.keys(RECIPES);

const numbers = (name: string): number[] => (name.match(/\d+/g) ?? []).map(Number);

/** Orders `linux-image-6.1.0-9-686` before `linux-image-6.1.0-10-686`. */
export const compareKernelNames = (a: string, b: string): number => {
  const left = numbers(a);
  const right = numbers(b);
  for (let index = 0; index < Math.max(left.length, right.length); index++) {
    const difference = (left[index] ?? -1) - (right[index] ?? -1);
    if (difference !== 0) return difference;
  }
  return 0;
};

/** The parts of PrivateApt that choosing packages needs. */
export type PackageLists = Pick<PrivateApt, "find" | "names">;

/**
 * The newest kernel of a flavour: what its metapackage depends on, or, where the lists have none, the highest version
 * number. The unsigned build is preferred (nothing here checks signatures, and it needs no signed twin).
 */
const findKernel = async (lists: PackageLists, flavour: string): Promise<AptPackage | undefined> => {
  const pattern = new RegExp(`^linux-image-[0-9][0-9a-z.+~-]*-${flavour}(-unsigned)?$`);
  const meta = await lists.find(`linux-image-${flavour}`);
  const all = (await lists.names("linux-image-"))
    .filter((name) => pattern.test(name))
    .map((name) => name.replace(/-unsigned$/, ""));
  const newest = [...new Set(all)]
    .filter((name) => !/-(rt|cloud)-/.test(name))
    .sort(compareKernelNames)
    .reverse();
  const candidates = [...(meta?.depends.filter((name) => pattern.test(name)) ?? []), ...newest];
  for (const name of candidates) {
    const found = (await lists.find(`${name}-unsigned`)) ?? (await lists.find(name));
    if (found) return found;
  }
  return undefined;
};

const noKernel = async (architecture: string, suite: string | undefined): Promise<VirtkitError> => {
  const { title, codename } = await readRelease();
  const from = suite === undefined ? title : `${title}, with the release ${suite},`;
  const hint =
    (suite ?? codename) === "bookworm"
      ? ""
      : " Debian 12 has one: where the sources are Debian's, try virtkit guest --suite bookworm.";
  return new VirtkitError(
    "ERR_VIRTKIT_NO_GUEST_KERNEL",
    `the package sources of ${from} offer no ${architecture} kernel (linux-image-686; Debian 13 and later have none).${hint}` +
      " Or give a kernel and an initramfs of your own with -kernel and -initrd.",
  );
};

/** `roots` and the libraries they need; nothing when one of them is not in the lists. */
const withLibraries = async (lists: PackageLists, roots: readonly string[]): Promise<AptPackage[] | undefined> => {
  const found = new Map<string, AptPackage>();
  const queue = [...roots];
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    if (found.has(name)) continue;
    const item = await lists.find(name);
    if (!item) return undefined;
    found.set(name, item);
    queue.push(...item.depends.filter((needed) => /^lib/.test(needed) && !/^lib(gcc|crypt)/.test(needed)));
  }
  return [...found.values()];
};

export interface GuestPackages {
  readonly kernel: AptPackage;
  readonly all: readonly AptPackage[];
}

/**
 * Chooses a guest's packages, the kernel first.
 * @throws VirtkitError ERR_VIRTKIT_NO_GUEST_KERNEL, ERR_VIRTKIT_NO_PACKAGE
 */
export const choosePackages = async (
  lists: PackageLists,
  architecture: string,
  suite?: string,
): Promise<GuestPackages> => {
  const recipe = RECIPES[architecture];
  if (!recipe) {
    throw new VirtkitError(
      "ERR_VIRTKIT_GUEST_ARCH",
      `no guest can be prepared for ${architecture}; known: ${GUEST_ARCHITECTURES.join(", ")}`,
    );
  }
  let kernel: AptPackage | undefined;
  for (const flavour of recipe.flavours) kernel ??= await findKernel(lists, flavour);
  if (!kernel) throw await noKernel(architecture, suite);
  const others: AptPackage[] = [];
  for (const name of recipe.others) {
    const item = await lists.find(name);
    if (!item) {
      throw new VirtkitError(
        "ERR_VIRTKIT_NO_PACKAGE",
        `the machine's package sources lack ${name} (${architecture}); Debian has it in its section main`,
      );
    }
    others.push(item);
  }
  const optional = (await withLibraries(lists, recipe.optional)) ?? [];
  return { kernel, all: [kernel, ...others, ...optional] };
};
