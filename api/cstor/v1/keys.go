package v1

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Labels.
const (
	LabelPoolCluster    = "openebs.io/cstor-pool-cluster"
	LabelPoolInstance   = "openebs.io/cstor-pool-instance"
	LabelHostName       = "kubernetes.io/hostname"
	LabelCASType        = "openebs.io/cas-type"
	LabelVersion        = "openebs.io/version"
	LabelPoolName       = "cstorpoolinstance.openebs.io/name"
	LabelPoolUID        = "cstorpoolinstance.openebs.io/uid"
	LabelVolumeName     = "cstorvolume.openebs.io/name"
	LabelPV             = "openebs.io/persistent-volume"
	LabelPVC            = "openebs.io/persistent-volume-claim" // an annotation on the CVC, a label elsewhere
	LabelTarget         = "openebs.io/target"
	LabelTargetService  = "openebs.io/target-service"
	LabelStorageEngine  = "openebs.io/storage-engine-type"
	LabelMonitoring     = "monitoring"
	LabelSourceVolume   = "openebs.io/source-volume"
	LabelPDB            = "openebs.io/pod-disruption-budget"
	LabelPolicyHash     = "cstor.openebs.io/template-hash"
	LabelComponent      = "openebs.io/component-name"
	LabelAttachmentNode = "nodeID"
	LabelAttachmentVol  = "Volname"
	LabelPrefix         = "openebs.io/" // openebs.io/<pool>=true on a PodDisruptionBudget
)

// Annotations.
const (
	AnnotationPoolHost          = "cstorpoolinstance.openebs.io/hostname"
	AnnotationVolumeID          = "openebs.io/volumeID"
	AnnotationVolumePolicy      = "openebs.io/volume-policy"
	AnnotationAllowedTags       = "openebs.io/allowed-bd-tags"
	AnnotationDisable           = "reconcile.openebs.io/disable"
	AnnotationDisableDependants = "reconcile.openebs.io/disable-dependants"
	AnnotationPredecessor       = "openebs.io/bd-predecessor"
	// AnnotationExistingPool, on a CStorPoolInstance, or on a CStorPoolCluster for all its pools, names a pool of objects
	// that are lost. It is taken over from the devices.
	AnnotationExistingPool = "import.cspi.cstor.openebs.io/existing-pool-name"

	// Ours, on a CStorPoolInstance; the last two also on a CStorPoolCluster, for all its pools.
	// AnnotationAcceptRecord, on a CStorVolume, names what replicas have noted of its CStorVolumeRecord that is given up, since the
	// record was restored from an old copy; what was completed since may be lost. The condition RecordWentBack says what to
	// write: version.epoch.nonce, several with commas between. None of it can mean what is noted later.
	AnnotationAcceptRecord = "cstor.openebs.io/accept-record"

	AnnotationScrub      = "cstor.openebs.io/scrub"       // start, pause, resume or stop; taken away when it is done
	AnnotationScrubEvery = "cstor.openebs.io/scrub-every" // time between scrubs, such as 168h; 0: only on request
	AnnotationScrubRate  = "cstor.openebs.io/scrub-rate"  // bytes per second, such as 100M; 0: as fast as leaves users most of the time

	// SuffixOfCluster, behind the name of one of these, names the annotation with the value that a CStorPoolInstance has from
	// its CStorPoolCluster, so that it goes when that has none any more.
	SuffixOfCluster = ".of-cluster"
)

// EnvMemoryLimit is the variable in which a pool's container has the limit of its memory in bytes, if there is one.
const EnvMemoryLimit = "CSTOR_MEMORY_LIMIT"

// Finalizers.
const (
	FinalizerPoolCluster    = "cstorpoolcluster.openebs.io/finalizer"   // CSPC, CSPI, BDC
	FinalizerPoolProtection = "openebs.io/pool-protection"              // CSPI, dropped by its pool when destroyed
	FinalizerVolumeConfig   = "cvc.openebs.io/finalizer"                // CVC
	FinalizerReplica        = "cstorvolumereplica.openebs.io/finalizer" // CVR, dropped by its pool when destroyed
)

// Values of labels.
const (
	CASType       = "cstor"
	AppPool       = "cstor-pool"
	AppTarget     = "cstor-volume-manager"
	TargetName    = "cstor-target"
	TargetService = "cstor-target-svc"
	Exporter      = "volume_exporter_prometheus"
)

// Ports.
const (
	PortISCSI   = 3260 // target: initiators
	PortReplica = 6060 // target: replicas dial in
	PortGRPC    = 7777 // target: snapshots
	PortPull    = 3233 // pool: other replicas pull from here
	PortMetrics = 9500 // pool and target: /metrics, /healthz, /readyz
)

// PoolNamePrefix is how the name of a pool begins that its labels carry; the UID of the CStorPoolCluster follows.
const PoolNamePrefix = "cstor-"

// MaxReplicas is the most replicas that a volume may have.
const MaxReplicas = 5

// IQN returns the iSCSI name of a volume.
func IQN(volume string) string { return "iqn.2016-09.com.openebs.cstor:" + volume }

// TargetDeployment returns the name of a volume's target Deployment.
func TargetDeployment(volume string) string { return volume + "-target" }

// ReplicaName returns the name of a volume's replica on a pool.
func ReplicaName(volume, pool string) string { return volume + "-" + pool }

// ReplicaID returns spec.replicaid of a volume's replica on a pool: the decimal xxhash64 of the name's JSON. It names
// the place, not the data: the same pool gives the same id again.
func ReplicaID(volume, pool string) string {
	b, err := json.Marshal(ReplicaName(volume, pool))
	if err != nil {
		panic(err) // a string has a JSON form
	}
	return strconv.FormatUint(xxhash.Sum64(b), 10)
}

// PoolOf returns the pool that a replica is on.
func (r *CStorVolumeReplica) PoolOf() string {
	if p := r.Labels[LabelPoolName]; p != "" {
		return p
	}
	return strings.TrimPrefix(r.Name, r.Labels[LabelPV]+"-")
}

// ConsistencyFactor returns how many of rf members must hold what is acknowledged.
func ConsistencyFactor(rf int) int { return rf/2 + 1 }
