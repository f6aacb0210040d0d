// One asset on one canvas: its splats, their centres, its mesh, and the camera that looks at them.
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
import { SparkRenderer, SplatMesh } from "@sparkjsdev/spark";

export const MODES = ["splats", "points", "mesh"];
export const FOV = 40; // degrees, of the smaller side
const FAINT = 0.1; // splats below this opacity are no points

export class Stage {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{splat?: Uint8Array, mesh?: Uint8Array, centre?: number[], radius?: number, antialiased?: boolean, live?: boolean}} asset
   *   files in the world frame (y up), the ball that the visible part fills, how it was trained, and whether splats come later
   * @param {() => void} onChange a new picture is due
   */
  constructor(canvas, asset, onChange) {
    this.asset = asset;
    this.onChange = onChange;
    this.dirty = true;
    this.busy = false; // while a picture of another size is taken
    this.shown = {};
    this.mode = asset.splat || asset.live ? "splats" : "mesh";
    this.camera = new THREE.PerspectiveCamera(FOV, 1, 0.01, 100);
    this.scene = new THREE.Scene();
    this.world = new THREE.Group(); // brings the asset into the unit ball
    this.scene.add(this.world, this.camera, new THREE.AmbientLight(0xffffff, 0.75 * Math.PI));
    this.camera.add(new THREE.DirectionalLight(0xffffff, 0.35 * Math.PI));
    // Multisampling does nothing for splats and costs much.
    this.renderer = new THREE.WebGLRenderer({ canvas, alpha: true, antialias: this.mode === "mesh" });
    this.spark = new SparkRenderer({
      renderer: this.renderer,
      onDirty: () => this.invalidate(),
      // The blur of 0.3 square pixels: 3DGS's does not take opacity away, that of Mip-Splatting does.
      preBlurAmount: asset.antialiased ? 0 : 0.3,
      blurAmount: asset.antialiased ? 0.3 : 0,
      sortRadial: false, // by depth, as the assets were trained
      enableLod: false,
    });
    this.scene.add(this.spark);
  }

  /** Decodes what the asset has; the counts say what came of it. */
  async load() {
    const { splat, mesh } = this.asset;
    this.counts = {};
    if (splat) {
      const splats = new SplatMesh({ fileBytes: splat, fileName: "asset.spz", extSplats: true });
      await splats.initialized;
      this.add("splats", splats);
      this.counts.n_splats = splats.numSplats;
    }
    if (mesh) {
      const { scene } = await new GLTFLoader().parseAsync(mesh.slice().buffer, "");
      this.add("mesh", scene);
      this.counts.n_vertices = this.counts.n_triangles = 0;
      scene.traverse(({ isMesh, geometry }) => {
        if (!isMesh) return;
        this.counts.n_vertices += geometry.attributes.position.count;
        this.counts.n_triangles += (geometry.index ?? geometry.attributes.position).count / 3;
      });
    }
    let { centre, radius } = this.asset;
    if (!radius) {
      const ball = new THREE.Box3().setFromObject(this.world).getBoundingSphere(new THREE.Sphere());
      [centre, radius] = [ball.center.toArray(), ball.radius || 1];
    }
    this.centre = new THREE.Vector3(...centre);
    this.radius = radius;
    this.world.scale.setScalar(1 / radius);
    this.world.position.copy(this.centre).divideScalar(-radius);
    this.world.updateMatrixWorld(true);
    this.show(this.mode);
  }

  /** Shows other splats, a .splat file, where the camera is. */
  async replace(splat) {
    const splats = new SplatMesh({ fileBytes: splat, fileName: "asset.splat", extSplats: true });
    await splats.initialized;
    for (const mode of ["splats", "points"]) {
      const old = this.shown[mode];
      if (!old) continue;
      this.world.remove(old);
      (old.geometry ?? old).dispose();
      delete this.shown[mode];
    }
    this.asset.splat = splat;
    this.add("splats", splats);
    this.counts.n_splats = splats.numSplats;
    this.show(this.mode ?? "splats");
  }

  add(mode, object) {
    this.shown[mode] = object;
    this.world.add(object);
  }

  has(mode) {
    return Boolean(mode === "mesh" ? this.asset.mesh : this.asset.splat);
  }

  /** Shows the asset as splats, points or mesh, as far as it has them. */
  show(mode) {
    this.mode = this.has(mode) ? mode : MODES.find((other) => this.has(other));
    if (this.mode === "points" && this.shown.splats && !this.shown.points) this.add("points", centres(this.shown.splats));
    for (const [name, object] of Object.entries(this.shown)) object.visible = name === this.mode;
    this.invalidate();
  }

  invalidate() {
    this.dirty = true;
    this.onChange();
  }

  setBackground(colour) {
    const clear = colour === "transparent";
    this.renderer.setClearColor(clear ? "#000000" : colour, clear ? 0 : 1);
    this.invalidate();
  }

  /** Looks from where ``camera`` stands around the unit ball. */
  follow(camera) {
    this.fov = null;
    this.camera.position.copy(camera.position);
    this.camera.quaternion.copy(camera.quaternion);
    this.invalidate();
  }

  /**
   * Looks through a camera given as in OpenCV.
   * @param {number[][]} viewmat world to camera, 4 x 4, x right, y down, z forward
   * @param {number} fov vertical, degrees
   */
  place(viewmat, fov) {
    const pose = new THREE.Matrix4().set(...viewmat.flat()).invert();
    pose.multiply(new THREE.Matrix4().makeScale(1, -1, -1));
    this.camera.position.setFromMatrixPosition(pose).sub(this.centre).divideScalar(this.radius);
    this.camera.quaternion.setFromRotationMatrix(pose);
    this.fov = fov;
    this.invalidate();
  }

  draw() {
    if (this.busy || !this.centre) return;
    this.dirty = false;
    const { clientWidth, clientHeight } = this.renderer.domElement;
    this.resize(clientWidth, clientHeight, Math.min(devicePixelRatio, 2));
    this.renderer.render(this.scene, this.camera);
  }

  resize(width, height, ratio) {
    const size = this.renderer.getDrawingBufferSize(new THREE.Vector2());
    if (size.x !== Math.floor(width * ratio) || size.y !== Math.floor(height * ratio)) {
      this.renderer.setPixelRatio(ratio);
      this.renderer.setSize(width, height, false);
    }
    const aspect = width / height;
    const narrow = Math.atan(Math.tan((FOV * Math.PI) / 360) / aspect) * (360 / Math.PI);
    this.camera.aspect = aspect;
    this.camera.fov = this.fov ?? (aspect < 1 ? narrow : FOV);
    this.camera.updateProjectionMatrix();
    this.camera.updateMatrixWorld();
  }

  /** A canvas with the view in the given size, sorted for this very camera. */
  async picture(width, height) {
    this.busy = true;
    try {
      this.resize(width, height, 1);
      await this.sorted();
      await this.spark.update({ scene: this.scene, camera: this.camera });
      await this.sorted();
      this.renderer.render(this.scene, this.camera);
      const copy = Object.assign(document.createElement("canvas"), { width, height });
      copy.getContext("2d").drawImage(this.renderer.domElement, 0, 0);
      return copy;
    } finally {
      this.busy = false;
      this.invalidate();
    }
  }

  /** Waits for a sort that is under way. */
  async sorted() {
    while (this.spark.sorting || this.spark.sortDirty) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The centres of splats as points of their colours. */
function centres(splats) {
  const positions = [];
  const colours = [];
  const linear = new THREE.Color();
  splats.forEachSplat((_, centre, scales, quaternion, opacity, colour) => {
    if (opacity < FAINT) return;
    positions.push(centre.x, centre.y, centre.z);
    linear.setRGB(colour.r, colour.g, colour.b, THREE.SRGBColorSpace);
    colours.push(linear.r, linear.g, linear.b);
  });
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.Float32BufferAttribute(positions, 3));
  geometry.setAttribute("color", new THREE.Float32BufferAttribute(colours, 3));
  return new THREE.Points(geometry, new THREE.PointsMaterial({ size: 3, sizeAttenuation: false, vertexColors: true }));
}
